"""What a report shows and nothing else of the run holds: `report.json`.

Replies and their verdicts, the geometry of the residuals, sizes of edits, and scores of exports are
written as they are measured. It is read without torch. Runs of earlier releases have no such file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from heretic.errors import RunError
from heretic.records import parse
from heretic.records.trial import Score
from heretic.runs.store import REPORT

if TYPE_CHECKING:
    from heretic.runs.folder import RunFolder

VERSION = 1
ORIGINAL = "original"
"""Stands for the unedited model where trials have their numbers."""

Scores = tuple[Score, ...]
Number = float | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt: the user's message, the system prompt, the category its set gives it."""

    user: str
    system: str | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply, and what the refusal detector calls it.

    Attributes:
        text: Without the response prefix.
        label: One of `heretic.refusals.LABELS`; None if the set's replies are not judged.
        span: First character of the part that decided it, and the one after it.
    """

    text: str
    label: str | None = None
    span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ReplySet:
    """Replies of several models to the same prompts.

    Attributes:
        name: Of the prompt set, e.g. `bad`.
        tokens: Most new tokens of a reply.
        detector: Version of the rules that gave the labels.
        prompts: In their order.
        replies: By trial number or `ORIGINAL`, in the order of the prompts.
    """

    name: str
    tokens: int
    detector: int
    prompts: tuple[Asked, ...]
    replies: Mapping[str, tuple[Reply, ...]]


@dataclass(frozen=True, slots=True)
class ModuleSize:
    """How much an edit changes a module: Frobenius norms of the change and of the weight.

    The weights of a layer's experts count as one.

    Attributes:
        relative: |dW| / |W|; None where the weights cannot be read.
    """

    layer: int
    component: str
    relative: Number


@dataclass(frozen=True, slots=True)
class Exported:
    """Scores of a saved trial.

    Attributes:
        at: When it was saved, ISO 8601 in UTC.
        rows: Scores by what was scored, e.g. `from disk`.
        long: The same on long replies.
        tokens: Most new tokens of a long reply; None without them.
        compared: Number of trials that it was chosen among.
    """

    trial: int
    at: str
    strategy: str
    folder: str
    rows: Mapping[str, Scores]
    long: Mapping[str, Scores] = field(default_factory=dict)
    tokens: int | None = None
    compared: int = 1


@dataclass(frozen=True, slots=True)
class Shown:
    """The content of `report.json`.

    Attributes:
        replies: Those at the search's length first.
        geometry: Figures of each layer by name (`heretic.report.geometry.LayerGeometry`).
        geometry_prompts: Number of good and of bad prompts behind it.
        lengths: How far bad prompts lie from good ones along each of the run's (first) directions,
            [layers + 1]. A direction times its length is the difference of the centres, less what
            the run projected out of it (`orthogonalize_direction`).
        sizes: By trial number.
    """

    replies: tuple[ReplySet, ...] = ()
    geometry: tuple[Mapping[str, Number], ...] = ()
    geometry_prompts: tuple[int, int] = (0, 0)
    lengths: tuple[float, ...] = ()
    sizes: Mapping[str, tuple[ModuleSize, ...]] = field(default_factory=dict)
    exports: tuple[Exported, ...] = ()

    def with_replies(self, new: Sequence[ReplySet]) -> Shown:
        """With other replies in place of those to the same set at the same length."""
        places = {(found.name, found.tokens) for found in new}
        kept = [found for found in self.replies if (found.name, found.tokens) not in places]
        ordered = sorted([*kept, *new], key=lambda found: (found.tokens, found.name))
        return replace(self, replies=tuple(ordered))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "version": VERSION,
            "replies": [_set_to_dict(found) for found in self.replies],
            "geometry": [_finite(row) for row in self.geometry],
            "geometry_prompts": list(self.geometry_prompts),
            "lengths": list(self.lengths),
            "sizes": {
                number: [[size.layer, size.component, size.relative] for size in found]
                for number, found in self.sizes.items()
            },
            "exports": [_export_to_dict(found) for found in self.exports],
        }

    @classmethod
    def from_dict(cls, data: object) -> Shown:
        """Read what `to_dict` wrote.

        Raises:
            RunError: It was written by a newer release.
            ValueError: It is malformed.
        """
        found = parse.table(data, "the report")
        version = parse.whole(found.get("version"), "version", 1)
        if version > VERSION:
            raise RunError(
                f"It has version {version}; this release reads {VERSION}.", remedy="Update Heretic."
            )
        good, bad = parse.numbers(found.get("geometry_prompts"), "geometry_prompts")
        sizes = parse.table(found.get("sizes"), "sizes")
        return cls(
            replies=tuple(map(_set, parse.rows(found.get("replies"), "replies"))),
            geometry=tuple(map(_row, parse.rows(found.get("geometry"), "geometry"))),
            geometry_prompts=(int(good), int(bad)),
            lengths=parse.numbers(found.get("lengths", ()), "lengths"),
            sizes={
                number: tuple(map(_size, parse.rows(rows, f"sizes.{number}")))
                for number, rows in sizes.items()
            },
            exports=tuple(map(_export, parse.rows(found.get("exports"), "exports"))),
        )


def read_shown(folder: RunFolder) -> Shown | None:
    """What the file of a run holds; None without one.

    Raises:
        RunError: It is damaged, or was written by a newer release.
    """
    content = folder.read_file(REPORT)
    if content is None:
        return None
    try:
        return Shown.from_dict(folder.parsed(REPORT, content))
    except ValueError as error:
        raise folder.damaged(REPORT, str(error)) from error
    except RunError as error:
        raise folder.damaged(REPORT, error.message) from error


def write_shown(folder: RunFolder, shown: Shown) -> None:
    """Replace the file of a run.

    Raises:
        RunError: It cannot be written.
    """
    # ASCII, since a model may write half characters.
    folder.write_file(REPORT, json.dumps(shown.to_dict(), allow_nan=False) + "\n")


def _finite(row: Mapping[str, Number]) -> dict[str, Number]:
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in row.items()
    }


def _set_to_dict(found: ReplySet) -> dict[str, Any]:
    return {
        "name": found.name,
        "tokens": found.tokens,
        "detector": found.detector,
        "prompts": [[one.user, one.system, one.category] for one in found.prompts],
        "replies": {
            model: [[one.text, one.label, one.span] for one in rows]
            for model, rows in found.replies.items()
        },
    }


def _set(data: object) -> ReplySet:
    found = parse.table(data, "replies")
    prompts = tuple(map(_asked, parse.rows(found.get("prompts"), "prompts")))
    rows = parse.table(found.get("replies"), "replies")
    replies = {
        model: tuple(map(_reply, parse.rows(some, f"replies.{model}")))
        for model, some in rows.items()
    }
    for model, some in replies.items():
        if len(some) != len(prompts):
            raise ValueError(f"{model} has {len(some)} replies to {len(prompts)} prompts")
    return ReplySet(
        parse.text(found.get("name"), "name"),
        parse.whole(found.get("tokens"), "tokens", 1),
        parse.whole(found.get("detector"), "detector", 1),
        prompts,
        replies,
    )


def _asked(data: object) -> Asked:
    user, system, category = _cells(data, "a prompt", 3)
    return Asked(
        parse.text(user, "a prompt"), _optional(system, "system"), _optional(category, "category")
    )


def _reply(data: object) -> Reply:
    text, label, span = _cells(data, "a reply", 3)
    ends = None if span is None else parse.numbers(span, "span")
    if ends is not None and len(ends) != 2:
        raise parse.wrong(span, "span", "a pair of numbers")
    return Reply(
        parse.text(text, "a reply"),
        _optional(label, "label"),
        None if ends is None else (int(ends[0]), int(ends[1])),
    )


def _row(data: object) -> dict[str, Number]:
    found = parse.table(data, "geometry")
    return {
        name: None if value is None else parse.number(value, name) for name, value in found.items()
    }


def _size(data: object) -> ModuleSize:
    layer, component, relative = _cells(data, "a size", 3)
    return ModuleSize(
        parse.whole(layer, "layer", 0),
        parse.text(component, "component"),
        None if relative is None else parse.number(relative, "relative"),
    )


def _export_to_dict(found: Exported) -> dict[str, Any]:
    return {
        "trial": found.trial,
        "at": found.at,
        "strategy": found.strategy,
        "folder": found.folder,
        "rows": _scores_to_dict(found.rows),
        "long": _scores_to_dict(found.long),
        "tokens": found.tokens,
        "compared": found.compared,
    }


def _export(data: object) -> Exported:
    found = parse.table(data, "an export")
    tokens = found.get("tokens")
    return Exported(
        trial=parse.whole(found.get("trial"), "trial", 0),
        at=parse.text(found.get("at"), "at"),
        strategy=parse.text(found.get("strategy"), "strategy"),
        folder=parse.text(found.get("folder"), "folder"),
        rows=_scores(found.get("rows"), "rows"),
        long=_scores(found.get("long"), "long"),
        tokens=None if tokens is None else parse.whole(tokens, "tokens", 1),
        compared=parse.whole(found.get("compared"), "compared", 1),
    )


def _scores_to_dict(rows: Mapping[str, Scores]) -> dict[str, Any]:
    return {name: [score.to_dict() for score in scores] for name, scores in rows.items()}


def _scores(data: object, name: str) -> dict[str, Scores]:
    return {
        label: tuple(map(Score.from_dict, parse.rows(rows, f"{name}.{label}")))
        for label, rows in parse.table(data, name).items()
    }


def _cells(data: object, name: str, count: int) -> list[Any]:
    found = parse.rows(data, name)
    if len(found) != count:
        raise parse.wrong(data, name, f"a list of {count}")
    return found


def _optional(value: object, name: str) -> str | None:
    return None if value is None else parse.text(value, name)
