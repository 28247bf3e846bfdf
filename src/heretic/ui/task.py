"""What a worker was asked about a trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Task:
    """A request about a trial, and its result.

    Attributes:
        kind: `sample`, `score` or `save`.
        title: What was asked, for people.
        result: As the protocol says; None until it is there.
        error: Why there is none; empty if there is one, or may come.
        folder: Where a model is saved to, with links resolved.
    """

    kind: str
    title: str
    result: Mapping[str, Any] | None = None
    error: str = ""
    folder: Path | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self.result is not None or bool(self.error)
