"""Scores and trials, and which trials no other dominates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from heretic.records.choices import Optimization as Optimization  # noqa: PLC0414 - imported from here
from heretic.records.plan import Plan

TrialState = Literal["complete", "failed"]


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of one trial.

    Attributes:
        name: Unique among the scores of a trial, e.g. `refusals`.
        value: The figure (a rate, or nats).
        optimization: Whether the search minimises or maximises it, or only reports it.
        display: How people read it, e.g. `3/100`.
        bound: Whether it is only the best that the score could still have become when the
            evaluation was ended.
        interval: Where the figure lies with 95% confidence, prompts taken as drawn by chance.
        values: Its share of each prompt, where the figure is their mean.
    """

    name: str
    value: float
    optimization: Optimization
    display: str
    bound: bool = False
    interval: tuple[float, float] | None = None
    values: tuple[float, ...] = ()

    def objective(self) -> float | None:
        """The value as something to minimise; None if the search only reports it."""
        signs = {"minimize": 1.0, "maximize": -1.0}
        sign = signs.get(self.optimization)
        return None if sign is None else sign * self.value

    def with_interval(self) -> str:
        """How people read it, with its interval where it has one, e.g. `3/100 [0.01, 0.085]`."""
        if self.interval is None:
            return self.display
        low, high = self.interval
        return f"{self.display} [{low:.2g}, {high:.2g}]"

    def to_dict(self, *, with_values: bool = False) -> dict[str, Any]:
        """JSON-ready form; what is at its default is left out."""
        record: dict[str, Any] = {
            "name": self.name,
            "value": self.value,
            "optimization": self.optimization,
            "display": self.display,
        }
        if self.bound:
            record["bound"] = True
        if self.interval is not None:
            record["interval"] = list(self.interval)
        if with_values and self.values:
            record["values"] = list(self.values)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Score:
        """Read what `to_dict` wrote.

        Raises:
            TypeError: A field is missing or unknown.
        """
        found = dict(record)
        low_high = found.pop("interval", None)
        values = tuple(found.pop("values", ()))
        return cls(**found, interval=low_high and (low_high[0], low_high[1]), values=values)


def objectives(scores: Iterable[Score]) -> tuple[float, ...]:
    """What the search minimises, in the order of the scores (maximised ones negated)."""
    return tuple(value for score in scores if (value := score.objective()) is not None)


@dataclass(frozen=True, slots=True)
class Trial:
    """A plan and its scores, or the reason why it has none.

    Attributes:
        number: 0-based, in order of evaluation.
        scores: In the order of the scorers in the settings; empty if the trial failed.
        failure: What went wrong, one line; None if the trial is complete.
        seconds: Wall-clock time of the evaluation.
    """

    number: int
    plan: Plan
    scores: tuple[Score, ...]
    state: TrialState = "complete"
    failure: str | None = None
    seconds: float = 0.0

    def score(self, name: str) -> Score | None:
        """The score of that name, if the trial has it."""
        return next((score for score in self.scores if score.name == name), None)

    def objectives(self) -> tuple[float, ...]:
        """Objective values, all to be minimised (maximised ones negated)."""
        return objectives(self.scores)

    @property
    def pruned(self) -> bool:
        """Whether its evaluation was ended because another trial dominates whatever it became."""
        return any(score.bound for score in self.scores)

    def to_dict(self) -> dict[str, Any]:
        """One row of `front.json`."""
        return {
            "trial": self.number,
            "scores": {score.name: score.value for score in self.scores},
            "plan": self.plan.to_dict(),
        }


def dominates(left: tuple[float, ...], right: tuple[float, ...]) -> bool:
    """Whether `left` is nowhere worse and somewhere better (all minimised)."""
    pairs = list(zip(left, right, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def front(trials: Iterable[Trial]) -> list[Trial]:
    """The trials evaluated in full that no other dominates, sorted by their objectives in order.

    Of trials with equal objectives the earliest stands for all.
    """
    by_objectives: dict[tuple[float, ...], Trial] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state == "complete" and not trial.pruned:
            by_objectives.setdefault(trial.objectives(), trial)
    return [
        by_objectives[values]
        for values in sorted(by_objectives)
        if not any(dominates(other, values) for other in by_objectives)
    ]
