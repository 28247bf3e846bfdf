"""What is searched, and what was seen."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.search_parts.quality import Quality

from heretic.records.volume import hypervolume

TOOLS = ("peer", "tpe", "ablation", "fitted")
MODELS = ("demo", "second", "real")
REFERENCE = (1.0, 1.0)
LIMITS = (3, 10, 25)
"""Refusals of 100 at which the least KL divergence is told."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One trial.

    Attributes:
        at: Seconds since the command was started (of the peer: since its search began).
        refusals: Rate by the refusal detector, partial refusals included; None if not counted.
        keywords: Rate by the peer's list of keywords.
        kl_divergence: Of the first token, in nats.
        bound: Whether the figures are bounds, because the trial was ended early.
    """

    at: float
    refusals: float | None
    keywords: float
    kl_divergence: float
    bound: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One search.

    Attributes:
        quality: Of the original, and of the least KL divergence at each of the limits, on held-out
            prompts and at length; empty until it is measured.
        note: How it was run, where that is not plain.
    """

    model: str
    tool: str
    seed: int
    trials: tuple[Seen, ...]
    quality: tuple[Quality, ...] = ()
    machine: str = platform.processor() or platform.machine()
    note: str = ""

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.model}-{self.tool}-{self.seed}"

    def volumes(self) -> list[float]:
        """Hypervolume of (keyword rate, KL divergence) against (1, 1) after each trial."""
        points: list[tuple[float, ...]] = []
        found = []
        for trial in self.trials:
            if not trial.bound:
                points.append((trial.keywords, trial.kl_divergence))
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

    def within(self, limit: int) -> list[Seen]:
        """The trials with at most so many refusals of 100 by the detector."""
        return [
            trial
            for trial in self.trials
            if not trial.bound
            and trial.refusals is not None
            and trial.refusals <= limit / 100 + 1e-9
        ]

    def least(self, limit: int) -> float | None:
        """Least KL divergence among trials with at most so many refusals of 100."""
        return min((trial.kl_divergence for trial in self.within(limit)), default=None)

    def usable(self, limit: int) -> float | None:
        """Seconds after which a trial had at most so many refusals of 100."""
        return min((trial.at for trial in self.within(limit)), default=None)

    def write(self, folder: Path) -> None:
        """Keep it."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1)
        (folder / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")


def read_runs(folder: Path) -> list[Run]:
    """All that was kept."""
    return [read_run(path) for path in sorted(folder.glob("*.json"))]


def read_run(path: Path) -> Run:
    """A search from the file that `Run.write` made."""
    data = json.loads(path.read_text(encoding="utf-8"))
    data["trials"] = tuple(Seen(**row) for row in data["trials"])
    data["quality"] = tuple(Quality.from_dict(row) for row in data["quality"])
    return Run(**data)


def of(runs: Sequence[Run], model: str, tool: str) -> list[Run]:
    """The runs of one tool on one model."""
    return [run for run in runs if run.model == model and run.tool == tool]
