"""Names of choices that plans, scores and settings share."""

from __future__ import annotations

from typing import Literal

DirectionScope = Literal["global", "per layer", "mean"]
RowNormalization = Literal["none", "pre", "full"]
Optimization = Literal["minimize", "maximize", "none"]
RowName = Literal["fewest", "most", "knee", "least-damage"]
"""Rows of a front that have a name: see `heretic.records.selection`."""
