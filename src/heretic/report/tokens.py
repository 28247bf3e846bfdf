"""A text whose tokens are coloured by how far each lies along a direction: the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LEVELS = 8
"""Steps of colour on either side."""


@dataclass(frozen=True, slots=True)
class ColouredText:
    """Tokens of a text, and how far the residual of each lies along the direction of one layer.

    Values that are not finite have no colour and no part in the scale.

    Attributes:
        layer: Counted from 0.
        tokens: Their texts.
        values: For each token, in the units of the residual stream.
        length: How far bad prompts lie from good ones along the direction; None if not kept.
        replied: Number of tokens at the end that the model wrote itself.
    """

    layer: int
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    length: float | None
    replied: int = 0

    @property
    def scale(self) -> float:
        """The value of full colour: the length, or else the largest value.

        The largest is searched after the first token, whose residual is huge in many models
        whatever it says; of values that are all zero it is 1.
        """
        if self._has_length:
            return abs(self.length or 0.0)
        rest = self.values[1:] or self.values
        return max((abs(value) for value in rest if math.isfinite(value)), default=0.0) or 1.0

    @property
    def _has_length(self) -> bool:
        return bool(self.length) and math.isfinite(self.length or 0.0)

    @property
    def shares(self) -> tuple[float | None, ...]:
        """Values over the scale; None for those that are not finite."""
        scale = self.scale
        return tuple(value / scale if math.isfinite(value) else None for value in self.values)

    @property
    def levels(self) -> tuple[int, ...]:
        """Steps of colour from -`LEVELS` to `LEVELS`; values beyond the scale get the last one."""
        return tuple(round(max(-1.0, min(1.0, share or 0.0)) * LEVELS) for share in self.shares)

    def told_scale(self) -> str:
        """What full colour stands for, in words."""
        if self._has_length:
            return f"{self.scale:.3g}, the length of the direction, from good to bad prompts"
        return f"{self.scale:.3g}, the largest value after the first token"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        rows = zip(self.tokens, self.values, strict=True)
        return {
            "layer": self.layer,
            "length": self.length if self._has_length else None,
            "replied": self.replied,
            "tokens": [
                {"text": text, "value": value if math.isfinite(value) else None}
                for text, value in rows
            ],
        }


def layer_told_apart(geometry: Sequence[dict[str, Any]], layers: int) -> tuple[int, str]:
    """The layer whose tokens are shown unless one is named, and why.

    The first layer whose linear probe is within 0.01 of the best one's; without a probe, the one at
    two thirds of the depth.

    Args:
        geometry: Figures of each layer by name, as a run keeps them.
        layers: Number of layers of the model.
    """
    probes = {
        int(row["layer"]): float(row["probe"])
        for row in geometry
        if row.get("probe") is not None and row.get("layer") is not None
    }
    probes = {layer: value for layer, value in probes.items() if layer < layers}
    if not probes:
        return (2 * (layers - 1)) // 3, "two thirds up; the run has kept no probe"
    best = max(probes.values())
    layer = min(layer for layer, value in probes.items() if value >= best - 0.01)
    told = f"the first one where a linear probe tells the run's prompts apart ({probes[layer]:.2f})"
    return layer, told
