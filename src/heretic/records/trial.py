"""Scores, trials, and the front of the trials that no other trial dominates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from heretic.records import parse
from heretic.records.choices import Optimization as Optimization  # noqa: PLC0414 - imported from here
from heretic.records.plan import Plan

TrialState = Literal["complete", "failed"]


def ends_text(ends: tuple[float, float]) -> str:
    """The ends of an interval, two digits of each, e.g. `0.01, 0.085` or `-110, 39`."""
    texts = (f"{end:.2g}" for end in ends)
    return ", ".join(f"{float(text):.0f}" if "e+" in text else text for text in texts)


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of one trial.

    Attributes:
        name: Unique among the scores of a trial, e.g. `refusals`.
        value: The figure (a rate, or nats).
        optimization: Whether the search minimises or maximises it, or only reports it.
        display: How people read it, e.g. `3/100`.
        bound: Whether the evaluation ended early, so that the value is only the best that the
            score could still have become.
        interval: 95% confidence interval of the value, with the prompts as a random sample.
        values: One value per prompt, where the score is their mean; else empty.
        withheld: Whether the figure would mean nothing, for the reason in `display`. The value is
            then NaN (null on disk), and the score is no objective.
        detector: Version of the rules that judged the replies (`heretic.refusals`); None if none
            did, or it was not kept. Counts of two versions are two things.
    """

    name: str
    value: float
    optimization: Optimization
    display: str
    bound: bool = False
    interval: tuple[float, float] | None = None
    values: tuple[float, ...] = ()
    withheld: bool = False
    detector: int | None = None

    @property
    def figure(self) -> float | None:
        """The value for programs: None if it is withheld."""
        return None if self.withheld else self.value

    @property
    def short(self) -> str:
        """`display` without what a count is made of, in brackets."""
        return self.display.partition(" (")[0]

    @property
    def is_sound(self) -> bool:
        """Whether the value is finite, or withheld for a reason."""
        return self.withheld or math.isfinite(self.value)

    @property
    def is_count(self) -> bool:
        """Whether the value is a share, which is shown as a count (`3/100`)."""
        return "/" in self.display

    @property
    def total(self) -> int | None:
        """How many prompts a count is out of; None if the score is no count."""
        found = re.match(r"[\d.]+/(\d+)\b", self.display, re.ASCII)
        return None if found is None else int(found[1])

    @property
    def parts(self) -> dict[str, float]:
        """The kinds of replies that a count names: `9/100 (2 partial, 4 degenerate)`."""
        found = re.findall(r"([\d.]+) ([^\W\d]\w*)", self.display.partition("(")[2], re.ASCII)
        return {kind: float(count) for count, kind in found}

    def objective(self) -> float | None:
        """The value to minimise: negated if it is maximised, None if it is only reported."""
        signs = {"minimize": 1.0, "maximize": -1.0}
        sign = signs.get(self.optimization)
        return None if sign is None else sign * self.value

    def with_interval(self) -> str:
        """The display form with the interval, if there is one, e.g. `3/100 [0.01, 0.085]`."""
        if self.interval is None:
            return self.display
        return f"{self.display} [{ends_text(self.interval)}]"

    def to_dict(self, *, with_values: bool = False) -> dict[str, Any]:
        """JSON-ready form without fields that have their default, and without values by default."""
        record: dict[str, Any] = {
            "name": self.name,
            "value": self.figure,
            "optimization": self.optimization,
            "display": self.display,
        }
        if self.bound:
            record["bound"] = True
        if self.interval is not None:
            record["interval"] = list(self.interval)
        if with_values and self.values:
            record["values"] = list(self.values)
        if self.withheld:
            record["withheld"] = True
        if self.detector is not None:
            record["detector"] = self.detector
        return record

    @classmethod
    def from_dict(cls, record: object) -> Score:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: A field is missing, unknown or malformed.
        """
        found = parse.table(record, "a score")
        parse.only(found, "a score", tuple(cls.__slots__))
        name = parse.text(found.get("name"), "a score's name")
        optimization = parse.optimization(found.get("optimization"), f"{name}.optimization")
        withheld = parse.flag(found.get("withheld", False), f"{name}.withheld")
        if withheld and (found.get("value") is not None or optimization != "none"):
            raise ValueError(f"{name} is withheld, but has a value or is an objective")
        return cls(
            name=name,
            value=math.nan if withheld else parse.number(found.get("value"), f"{name}.value"),
            optimization=optimization,
            display=parse.text(found.get("display"), f"{name}.display"),
            bound=parse.flag(found.get("bound", False), f"{name}.bound"),
            interval=_interval(found.get("interval"), f"{name}.interval"),
            values=parse.numbers(found.get("values", ()), f"{name}.values"),
            withheld=withheld,
            detector=_detector(found.get("detector"), f"{name}.detector"),
        )


def _detector(value: object, name: str) -> int | None:
    return None if value is None else parse.whole(value, name, 1)


def _interval(value: object, name: str) -> tuple[float, float] | None:
    if value is None:
        return None
    ends = parse.numbers(value, name)
    if len(ends) != 2:
        raise parse.wrong(value, name, "a pair of numbers")
    return ends[0], ends[1]


def words_of(name: str) -> str:
    """A score's name as people read it: `kl_divergence` -> `KL divergence`."""
    return re.sub(r"^kl\b", "KL", name.replace("_", " "), flags=re.IGNORECASE)


def objectives(scores: Iterable[Score]) -> tuple[float, ...]:
    """The values that the search minimises, in the order of the scores; maximised ones negated."""
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
        """The score of that name; None if the trial has none."""
        return next((score for score in self.scores if score.name == name), None)

    def objectives(self) -> tuple[float, ...]:
        """Objective values, all to be minimised (maximised ones negated)."""
        return objectives(self.scores)

    @property
    def pruned(self) -> bool:
        """Whether the evaluation ended early, since another trial dominates any possible result."""
        return any(score.bound for score in self.scores)

    def to_dict(self) -> dict[str, Any]:
        """One row of `front.json`, less its names."""
        return {
            "trial": self.number,
            "scores": {score.name: score.figure for score in self.scores},
            "plan": self.plan.to_dict(),
        }


def dominates(left: tuple[float, ...], right: tuple[float, ...]) -> bool:
    """Whether `left` is worse in no objective and better in at least one (all minimised)."""
    pairs = list(zip(left, right, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def front(trials: Iterable[Trial]) -> list[Trial]:
    """The fully evaluated trials that no other dominates, sorted by their objectives.

    Among trials with equal objectives only the earliest is kept.
    """
    by_objectives: dict[tuple[float, ...], Trial] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state == "complete" and not trial.pruned:
            by_objectives.setdefault(trial.objectives(), trial)
    return [by_objectives[values] for values in undominated(by_objectives)]


def front_with(known: list[Trial], trial: Trial) -> list[Trial]:
    """The front after one more trial; the same list where the trial changes nothing.

    Args:
        known: What `front` has returned.
    """
    if trial.state != "complete" or trial.pruned:
        return known
    values = trial.objectives()
    for one in known:
        found = one.objectives()
        if dominates(found, values) or (found == values and one.number < trial.number):
            return known
    return front([*known, trial])


def undominated(points: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The points that no other dominates, sorted, without repetitions (all minimised)."""
    ordered = sorted(set(points))
    kept: list[tuple[float, ...]] = []
    if all(len(point) == 2 for point in ordered):
        for point in ordered:  # those before it are no worse in the first objective
            if not kept or not kept[-1][1] <= point[1]:
                kept.append(point)
        return kept
    # A point is dominated only by points before it in this order, hence by one that was kept.
    for point in ordered:
        if not any(dominates(other, point) for other in reversed(kept)):
            kept.append(point)
    return kept
