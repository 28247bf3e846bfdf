"""Names of choices that plans, scores and settings share."""

from __future__ import annotations

from typing import Literal

DirectionScope = Literal["global", "per layer", "mean"]
RowNormalization = Literal["none", "pre", "full"]
Optimization = Literal["minimize", "maximize", "none"]
RowName = Literal["fewest", "most", "knee", "least-damage"]
"""Rows of a front that have a name: see `heretic.records.selection`."""

DEFAULT_STRATEGY = "merge"
"""How a model is saved if nothing is said."""


def weights_strategy(strategy: str) -> str:
    """How the weights are saved from which a strategy's files are made: GGUF files, from merged."""
    return "merge" if strategy == "gguf" else strategy
