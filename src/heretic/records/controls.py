"""Controls of a chosen plan: the same plan with vectors that should not work, and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from heretic.records import parse
from heretic.records.selection import first_objective
from heretic.records.statistics import paired
from heretic.records.trial import Score, words_of

Kind = Literal["chosen", "shuffled", "random", "layers", "topic"]

TITLES: Mapping[Kind, str] = {
    "chosen": "chosen plan",
    "shuffled": "shuffled labels",
    "random": "random rotation",
    "layers": "other layers",
    "topic": "topic alone",
}

_PLURALS: Mapping[Kind, str] = {
    "shuffled": "shuffled labels",
    "random": "random rotations",
    "layers": "other layers",
}

ARBITRARY: tuple[Kind, ...] = ("shuffled", "random", "layers")
"""Controls whose vectors have nothing to do with behaviour or topic."""

SHOWN_AT_MOST = 0.1
"""Share of topic prompts that may show the behaviour; with more, they stand for it as well."""


@dataclass(frozen=True, slots=True)
class Control:
    """A plan's scores with other vectors than its own.

    Attributes:
        kind: What the vectors are; `chosen` for the plan's own.
        draw: Number of the random draw, from 1; 0 where nothing is drawn.
        scores: As those of a trial.
        shows: Of the topic prompts, how many replies of the original show the behaviour, and how
            many were read; None for other kinds, and where no scorer can tell.
    """

    kind: Kind
    draw: int
    scores: tuple[Score, ...]
    shows: tuple[int, int] | None = None

    @property
    def title(self) -> str:
        """What people call it, e.g. `shuffled labels 2`."""
        return f"{TITLES[self.kind]} {self.draw}" if self.draw else TITLES[self.kind]

    def to_dict(self, *, with_values: bool = False) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "kind": self.kind,
            "draw": self.draw,
            "scores": [score.to_dict(with_values=with_values) for score in self.scores],
            "shows": None if self.shows is None else list(self.shows),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Control:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: A field is missing or malformed.
        """
        shows = record.get("shows")
        counts = None if shows is None else [parse.whole(n, "shows", 0) for n in shows]
        if counts is not None and len(counts) != 2:
            raise ValueError("shows must be a pair of numbers")
        return cls(
            kind=parse.one_of(record.get("kind"), "kind", get_args(Kind)),
            draw=parse.whole(record.get("draw"), "draw", 0),
            scores=tuple(map(Score.from_dict, parse.rows(record.get("scores"), "scores"))),
            shows=None if counts is None else (counts[0], counts[1]),
        )


def conclusion(baseline: Sequence[Score], controls: Sequence[Control]) -> str:
    """One sentence on what follows from the controls, by the first objective.

    Figures are compared in pairs on the same prompts (`heretic.records.statistics.paired`).

    Args:
        baseline: Scores of the unedited model.
        controls: The chosen plan and at least one control.
    """
    chosen = next(control for control in controls if control.kind == "chosen").scores
    objective = first_objective(chosen)
    if objective is None:
        return "No score is an objective, so nothing says whether a plan works."
    original, own = _named(baseline, objective), objective
    verb = "reach" if own.optimization == "maximize" else "leave"
    if not _better(original, own):
        return (
            f"The chosen plan {verb}s {_amount([own])}, the original {_figure(original)}: the "
            "difference may be chance, so nothing follows."
        )
    found = {
        kind: [_named(control.scores, own) for control in controls if control.kind == kind]
        for kind in ARBITRARY
    }
    arbitrary = {kind: rows for kind, rows in found.items() if rows}
    as_well = [score for rows in arbitrary.values() for score in rows if not _better(score, own)]
    parts = [_of_arbitrary(own, arbitrary, as_well, verb)]
    topic = next((control for control in controls if control.kind == "topic"), None)
    if topic is not None and not as_well:  # else the topic's direction may work as any would
        parts.append(_of_topic(original, own, topic, verb))
    return "; ".join(parts) + "."


def _of_arbitrary(
    own: Score, found: Mapping[Kind, Sequence[Score]], as_well: Sequence[Score], verb: str
) -> str:
    scores = [score for rows in found.values() for score in rows]
    names = " and ".join(_PLURALS[kind] for kind in found)
    names = names[0].upper() + names[1:]
    told = f"{names} {verb} {_amount(scores)}, the chosen plan {_figure(own)}: "
    what = "the direction" if "shuffled" in found else "the fit"
    if not as_well:
        return f"{told}{what} carries something of the behaviour or of its topic"
    if len(as_well) == len(scores):
        return f"{told}the size of the edit does it, whatever {what} carries"
    return f"{told}{len(as_well)} of {len(scores)} do as well, so {what} may carry nothing"


def _of_topic(original: Score, own: Score, topic: Control, verb: str) -> str:
    count, total = topic.shows or (0, 0)
    score = _named(topic.scores, own)
    told = f"the topic's direction {verb}s {_amount([score])}"
    if count > SHOWN_AT_MOST * total:
        return (
            f"{told}, which says nothing, since {count} of {total} topic prompts show the "
            "behaviour as well"
        )
    if not _better(score, own):
        return f"{told}, which is no worse: it carries the topic"
    if _better(original, score):
        return f"{told}: part of what it carries is the topic"
    return (
        f"{told}, not told apart from the original's {_figure(original)}: it carries the "
        "behaviour, not the topic of these prompts"
    )


def _named(scores: Sequence[Score], like: Score) -> Score:
    return next(score for score in scores if score.name == like.name)


def _better(first: Score, second: Score) -> bool:
    """Whether the second score is better, in a paired test if there are values for it."""
    before, after = first.objective(), second.objective()
    assert before is not None
    assert after is not None
    test = paired(first.values, second.values)
    return after < before and (test is None or test.tells_apart)


def _amount(scores: Sequence[Score]) -> str:
    """Figures of one score as a range, e.g. `96 to 98 of 100 refusals`."""
    name, total = words_of(scores[0].name), scores[0].total
    ordered = sorted(scores, key=lambda score: score.value)
    low, high = _figure(ordered[0]), _figure(ordered[-1])
    among = low if low == high else f"{low} to {high}"
    return f"{name} of {among}" if total is None else f"{among} of {total} {name}"


def _figure(score: Score) -> str:
    """How many prompts a score counts; its value if it counts none."""
    return f"{score.value * (score.total or 1):.4g}"
