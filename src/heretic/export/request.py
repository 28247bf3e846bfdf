"""What an export is made from: one trial of a run, and everything that its documents report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from heretic.errors import ExportError
from heretic.harness.results import PairedMetric
from heretic.records.categories import CategoryTable
from heretic.records.trial import Score, Trial
from heretic.runs.manifest import RunManifest

if TYPE_CHECKING:
    from torch import Tensor

Strategy = Literal["merge", "adapter"]
"""`merge` writes whole edited weights, `adapter` a LoRA or DoRA for the base model."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores on prompts that neither the directions nor the search has seen.

    Attributes:
        before: Scores of the unedited model.
        after: Scores of the trial, with the edit applied while the model runs.
        good, bad: Number of good and of bad prompts.
    """

    before: tuple[Score, ...]
    after: tuple[Score, ...]
    good: int
    bad: int

    def to_dict(self, *, with_values: bool = False) -> dict[str, Any]:
        """JSON-ready form, without the values of single prompts by default."""
        return {
            "before": [score.to_dict(with_values=with_values) for score in self.before],
            "after": [score.to_dict(with_values=with_values) for score in self.after],
            "good": self.good,
            "bad": self.bad,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> HeldOut:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: It is malformed.
        """
        before, after = (
            tuple(Score.from_dict(row) for row in record[name]) for name in ("before", "after")
        )
        return cls(before, after, int(record["good"]), int(record["bad"]))


@dataclass(frozen=True, slots=True)
class FullPrecision:
    """Scores in full precision, where the search ran on a quantised model.

    Attributes:
        before: Of the original in full precision, against which the others are measured.
        rounded: Of the quantised original: what quantisation alone changes.
        after: Of the saved model.
    """

    before: tuple[Score, ...]
    rounded: tuple[Score, ...]
    after: tuple[Score, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "before": [score.to_dict() for score in self.before],
            "quantised": [score.to_dict() for score in self.rounded],
            "after": [score.to_dict() for score in self.after],
        }

    def changes(self) -> dict[str, float]:
        """How far quantisation alone moves each score, by its name."""
        before = {score.name: score.value for score in self.before}
        return {
            score.name: abs(score.value - before[score.name])
            for score in self.rounded
            if not math.isnan(score.value - before[score.name])  # one of them was withheld
        }


@dataclass(frozen=True, slots=True)
class Repacked:
    """What packing the edited weights in the base's own format changes, beside what the edit does.

    Both are mean KL divergences of the first token's distribution, in nats, on the good evaluation
    prompts.

    Attributes:
        label: The format, for people.
        edit: Of the edited model, unrounded, from the original.
        rounding: Of the saved model from the edited model, unrounded.
        prompts: Number of prompts.
    """

    label: str
    edit: float
    rounding: float
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "format": self.label,
            "kl_of_edit": self.edit,
            "kl_of_rounding": self.rounding,
            "prompts": self.prompts,
        }


@dataclass(frozen=True, slots=True)
class LongReplies:
    """Scores that rest on replies, with longer replies than in the search, on the same prompts.

    Attributes:
        tokens: Most new tokens of a reply.
        before: Scores of the unedited model; the last is the share of broken replies.
        after: Scores of the trial, with the edit applied while the model runs.
        saved: Scores of the saved files, loaded again, on the first of the prompts; empty if they
            were not measured.
    """

    tokens: int
    before: tuple[Score, ...]
    after: tuple[Score, ...]
    saved: tuple[Score, ...] = ()

    def to_dict(self, *, with_values: bool = False) -> dict[str, Any]:
        """JSON-ready form; without values of single prompts by default."""
        return {
            "tokens": self.tokens,
            "before": [score.to_dict(with_values=with_values) for score in self.before],
            "after": [score.to_dict(with_values=with_values) for score in self.after],
            "saved": [score.to_dict(with_values=with_values) for score in self.saved],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> LongReplies:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: It is damaged.
        """
        return cls(
            tokens=int(record["tokens"]),
            before=tuple(Score.from_dict(score) for score in record["before"]),
            after=tuple(Score.from_dict(score) for score in record["after"]),
            saved=tuple(Score.from_dict(score) for score in record.get("saved", ())),
        )


@dataclass(frozen=True, slots=True)
class UsedPrompts:
    """A set of prompts that figures rest on.

    Attributes:
        use: What it was used for, e.g. `bad, evaluation`.
        source: Hub id or file name, with its split; empty if it is what another set left over.
        count: Number of prompts.
        digest: First 12 hexadecimal digits of the SHA-256 of their texts.
    """

    use: str
    source: str
    count: int
    digest: str


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The settings that an export reads; each field is the setting of that name."""

    model: str
    model_commit: str | None
    max_rank: int
    max_shard_size: str
    behavior: str
    goal: str


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The trial to export, with the run it comes from.

    Attributes:
        trial: Its plan, and the scores that the search measured.
        directions: float32 [layers + 1, hidden] or [layers + 1, k, hidden], as kept with the run.
        baseline: Scores of the unedited model; empty if they were never measured.
        manifest: Manifest of the run that the trial comes from.
        options: The run's settings that exports read.
        settings: All settings of the run, JSON-ready; `reproduce.json` keeps those that change
            scores.
        verified: Scores of the saved files, reloaded from disk; None before `verify`.
        full_precision: Scores in full precision, if the search ran on a quantised model.
        repacked: What packing the edited weights anew changes, if the base is packed and the saved
            model is too.
        held_out: Scores on held-out prompts; None if there are none.
        long_replies: Scores with longer replies; None if no scorer reads replies.
        categories: Scores by category of the prompts; empty where the sets have no categories.
        benchmarks: Metrics of the trial, paired with the original's, on whole benchmark tasks.
        prompts: The sets of prompts that the figures rest on.
        compared: Number of trials that this one was chosen among; 1 without a search.
        as_recorded: Whether all scores come from a reproduction file whose hashes the weight files
            have; nothing was measured on this copy.
    """

    trial: Trial
    directions: Tensor
    baseline: tuple[Score, ...]
    manifest: RunManifest
    options: ExportOptions
    settings: Mapping[str, Any]
    verified: tuple[Score, ...] | None = None
    full_precision: FullPrecision | None = None
    repacked: Repacked | None = None
    held_out: HeldOut | None = None
    long_replies: LongReplies | None = None
    categories: tuple[CategoryTable, ...] = ()
    benchmarks: tuple[PairedMetric, ...] = ()
    prompts: tuple[UsedPrompts, ...] = ()
    compared: int = 1
    as_recorded: bool = False

    @property
    def scores(self) -> tuple[Score, ...]:
        """Scores of the reloaded files if they were measured, otherwise the search's."""
        return self.trial.scores if self.verified is None else self.verified


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One line of a before/after table; None where nothing was measured."""

    name: str
    before: Score | None
    after: Score | None


def score_rows(before: tuple[Score, ...], after: tuple[Score, ...]) -> list[ScoreRow]:
    """Pair scores by name: in the order of `after`, then those that only `before` has."""
    old: Mapping[str, Score] = {score.name: score for score in before}
    new: Mapping[str, Score] = {score.name: score for score in after}
    return [ScoreRow(name, old.get(name), new.get(name)) for name in {**new, **old}]


def check_strategy(strategy: str) -> Strategy:
    """Return a known strategy unchanged.

    Raises:
        ExportError: The strategy is unknown.
    """
    for known in get_args(Strategy):
        if strategy == known:
            return known  # type: ignore[no-any-return]
    raise ExportError(f"Unknown export strategy {strategy!r}.", remedy="Use 'merge' or 'adapter'.")
