"""What is searched, and what was seen."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heretic.search.volume import hypervolume

TOOLS = ("peer", "tpe", "gp", "gradient", "auto")
MODELS = ("demo", "second")
REFERENCE = (1.0, 1.0)
LIMITS = (3, 10, 25)
"""Refusals of 100 at which the least KL divergence is told."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One trial: seconds since the search began, refusal rate, KL divergence in nats.

    Attributes:
        bound: Whether the figures are bounds, because the trial was ended early.
    """

    at: float
    refusals: float
    kl_divergence: float
    bound: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One search.

    Attributes:
        before: Seconds that the search needed before its first trial (the gradient sweep).
        held_out: Refusal rate and KL divergence, on the evaluation prompts and on held-out ones, of
            the trial with the least KL divergence among those with few refusals.
        note: How it was run, where that is not plain.
    """

    model: str
    tool: str
    seed: int
    trials: tuple[Seen, ...]
    before: float = 0.0
    held_out: Mapping[str, Any] | None = None
    machine: str = platform.processor() or platform.machine()
    note: str = ""

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.model}-{self.tool}-{self.seed}"

    def volumes(self) -> list[float]:
        """Hypervolume of (refusal rate, KL divergence) against (1, 1) after each trial."""
        points: list[tuple[float, ...]] = []
        found = []
        for trial in self.trials:
            if not trial.bound:
                points.append((trial.refusals, trial.kl_divergence))
            found.append(hypervolume(points, REFERENCE))
        return found

    @property
    def final(self) -> float:
        """The last hypervolume."""
        return self.volumes()[-1]

    def reached(self, volume: float) -> float | None:
        """Seconds after which the hypervolume was at least that; None if it never was."""
        times = zip(self.trials, self.volumes(), strict=True)
        return next((trial.at for trial, found in times if found >= volume), None)

    def least(self, limit: int) -> float | None:
        """Least KL divergence among trials with at most so many refusals of 100."""
        fitting = [
            trial.kl_divergence
            for trial in self.trials
            if not trial.bound and trial.refusals <= limit / 100 + 1e-9
        ]
        return min(fitting, default=None)

    def write(self, folder: Path) -> None:
        """Keep it."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1)
        (folder / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")


def read_runs(folder: Path) -> list[Run]:
    """All that was kept."""
    runs = []
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        data["trials"] = tuple(Seen(**row) for row in data["trials"])
        runs.append(Run(**data))
    return runs


def of(runs: Sequence[Run], model: str, tool: str) -> list[Run]:
    """The runs of one tool on one model."""
    return [run for run in runs if run.model == model and run.tool == tool]
