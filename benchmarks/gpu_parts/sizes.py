"""How much is measured: on a GPU, or as a try on a CPU. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPES = {"4b": "qwen3-4b", "135m": "smollm2-135m", "8b": "qwen3-8b"}
"""Section to the name of its shape in `benchmarks.engine_parts.setup.SHAPES`."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Which trials of a model are timed, the most important first.

    Attributes:
        plans: In one call.
        lengths: New tokens of a reply.
        rounds: Timed calls of each cell, after one that warms up.
    """

    plans: tuple[int, ...]
    lengths: tuple[int, ...]
    rounds: int


@dataclass(frozen=True, slots=True)
class Size:
    """All that differs between a GPU and a try on a CPU.

    Attributes:
        shapes: Section to the name of a shape.
        prompts: In each evaluation set, and in each set that directions come from.
        cells: Section to its trials.
        profiled: Two lengths of replies; launches of a step are the difference per token.
        training: Steps, examples in a step, and longest reply of the stand-in's training.
        training_seconds: After which it begins no step.
        trials: Of the whole search.
        peer_trials: Of the peer, on each model.
        copies: Number of launches that are timed together.
        matrix: Rows and columns of the matrices whose product is timed.
        least: Section to the seconds that must be left for it to begin.
        most: Section to the seconds after which it begins nothing more; it is ended a while later.
    """

    shapes: Mapping[str, str]
    prompts: int
    cells: Mapping[str, Cells]
    profiled: tuple[int, int]
    training: tuple[int, int, int]
    training_seconds: float
    trials: int
    peer_trials: int
    copies: int
    matrix: int
    least: Mapping[str, float]
    most: Mapping[str, float]


GRACE = 20.0
"""Seconds that a section has beyond its own, to end a call that it has begun."""

FULL = Size(
    shapes=SHAPES,
    prompts=100,
    cells={
        "4b": Cells((16, 1, 4), (100, 40), 2),
        "135m": Cells((16, 1, 4), (40, 100), 2),
        "8b": Cells((16, 1), (100,), 1),
    },
    profiled=(16, 48),
    training=(400, 48, 96),
    training_seconds=60.0,
    trials=40,
    peer_trials=3,
    copies=1000,
    matrix=8192,
    least={"device": 15, "4b": 40, "135m": 40, "search": 45, "8b": 40, "peer": 60},
    most={"device": 20, "4b": 130, "135m": 110, "search": 90, "8b": 70, "peer": 150},
)
TINY = Size(
    shapes=dict.fromkeys(SHAPES, "tiny"),
    prompts=12,
    cells={
        "4b": Cells((2, 1), (4, 2), 1),
        "135m": Cells((2,), (8,), 1),
        "8b": Cells((2,), (4,), 1),
    },
    profiled=(2, 4),
    training=(100, 16, 10),
    training_seconds=40.0,
    trials=3,
    peer_trials=2,
    copies=50,
    matrix=256,
    least=dict.fromkeys(("device", "4b", "135m", "search", "8b", "peer"), 5),
    most=dict.fromkeys(("device", "4b", "135m", "search", "8b", "peer"), 400),
)
SIZES = {"full": FULL, "tiny": TINY}


@dataclass(frozen=True, slots=True)
class Job:
    """What a section is given.

    Attributes:
        section: Its name.
        size: How much to measure.
        work: A folder that all sections share, for models.
        wheels: The folder that `--wheels` names.
        emit: Keeps one row of a table: the table's name, and its figures.
        left: Seconds until no further cell should begin.
    """

    section: str
    size: Size
    work: Path
    wheels: Path | None
    emit: Callable[[str, Mapping[str, Any]], None]
    left: Callable[[], float]

    @property
    def shape(self) -> str:
        """The name of the section's shape."""
        return self.size.shapes[self.section]

    def note(self, text: str) -> None:
        """Keep a sentence on what was left out, or went another way."""
        self.emit("notes", {"text": text})
