"""What a model's layers keep of a text, and which masks they take.

Layers with full attention, with attention to a window and with a recurrence take masks of their
own. transformers' forwards take them ready-made, in a dictionary by the kind of layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from heretic.model.masks import Masks

RECURRENT = ("linear_attention", "conv")
"""transformers' names of kinds of layers whose mask says which tokens are no padding."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a layer keeps: keys and values, and how many states that tokens carry on."""

    keys: bool = True
    states: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """The layers of a model.

    Attributes:
        layers: What each layer keeps.
        window: Tokens that a layer with a sliding window sees, its own included; None if no row is
            longer, or no layer has one.
        chunk: Tokens of a chunk, for layers that see only their token's chunk; None likewise.
        alike: Whether all layers take the same mask.
    """

    layers: tuple[Kept, ...]
    window: int | None = None
    chunk: int | None = None
    alike: bool = False

    @property
    def carries(self) -> bool:
        """Whether a layer carries states from token to token."""
        return any(layer.states for layer in self.layers)

    def for_rows(self, longest: int) -> Layout:
        """The layout where no row has more tokens: windows that are as long play no part."""
        window = self.window if self.window is not None and self.window < longest else None
        chunk = self.chunk if self.chunk is not None and self.chunk < longest else None
        return replace(self, window=window, chunk=chunk)

    def masks(
        self,
        seen: Tensor,
        positions: Tensor,
        real: Tensor | None,
        columns: Callable[[], Tensor],
    ) -> Masks:
        """The masks of one forward pass.

        Args:
            seen: Which token sees which column under full attention, bool [rows, tokens, columns].
            positions: Positions of the tokens, int64 [rows, tokens].
            real: Which tokens are no padding, bool [rows, tokens]; None if all are.
            columns: Gives the positions of the columns' tokens, int64 [rows, columns]; any number
                where there is no token.
        """
        if not (self.carries or self.window or self.chunk):
            return seen
        if not any(layer.keys for layer in self.layers):
            return real
        sliding = chunked = seen
        if self.window or self.chunk:
            here, there = positions.unsqueeze(2), columns().unsqueeze(1)
            if self.window:
                sliding = seen & (here - there < self.window)
            if self.chunk:
                chunked = seen & (here // self.chunk == there // self.chunk)
        if self.alike:
            return sliding if self.window else chunked
        return {
            "full_attention": seen,
            "hybrid": seen,
            "sliding_attention": sliding,
            "chunked_attention": chunked,
            **(dict.fromkeys(RECURRENT, real) if self.carries else {}),
        }
