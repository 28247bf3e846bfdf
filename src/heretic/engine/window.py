"""Where a forward pass reads and writes in a cache of slots."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Window:
    """Where the current forward pass reads and writes: slots first..last, columns begin..end.

    Attributes:
        column: The column that one token of every row is written to, int64 [1]; a tensor, so that
            the next step may be the same work on the device. None writes the columns before `end`.
    """

    first: int = 0
    last: int = 0
    begin: int = 0
    end: int = 0
    column: Tensor | None = None
