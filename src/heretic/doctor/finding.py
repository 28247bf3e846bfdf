"""What a check has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]
"""`note`: works, but slowly, in part, or not as one may think. `problem`: something will fail."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was looked at, in a word or two.
        found: What is there, in a sentence or a list.
        remedy: What to do; empty where there is nothing to do.
    """

    name: str
    state: State
    found: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain data for `--json`."""
        return asdict(self)
