"""The scorer protocol.

A scorer says which outputs it needs; the evaluator computes each once and hands them over. A scorer
never touches the model, so its score cannot depend on how an edit was applied, or on the number of
plans that were evaluated together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from heretic.config.tables import Datasets
from heretic.model.outputs import Continuation, Endings, Reading, Reference
from heretic.prompts import Prompt
from heretic.records.statistics import interval, is_rate
from heretic.records.trial import Optimization, Score

PromptSet = str
"""`good` or `bad` for the evaluation prompts, or the name of a scorer's own set."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Outputs that a scorer reads.

    Attributes:
        logits: Sets whose first-token logits it reads.
        divergences: Sets on which it reads how far first tokens are from the unedited model's. That
            is computed where the logits are, so that they need not be copied to main memory.
        responses: Sets whose replies it reads.
        continuations: Sets on which it reads teacher-forced outputs along the original's replies,
            with the number of tokens of each reply.
        texts: Sets of texts that the model reads and does not answer, with the number of tokens of
            each text.
        endings: Sets of items (contexts with candidate endings) whose endings' likelihoods it
            reads.
    """

    logits: frozenset[PromptSet] = frozenset()
    responses: frozenset[PromptSet] = frozenset()
    continuations: Mapping[PromptSet, int] = field(default_factory=dict)
    texts: Mapping[PromptSet, int] = field(default_factory=dict)
    endings: frozenset[PromptSet] = frozenset()
    divergences: frozenset[PromptSet] = frozenset()

    @property
    def first_tokens(self) -> frozenset[PromptSet]:
        """Sets whose first tokens are predicted, whatever is read of them."""
        return self.logits | self.divergences

    def are_met(self, outputs: Outputs) -> bool:
        """Whether the outputs hold everything that is needed."""
        return (
            self.logits <= set(outputs.logits)
            # They follow from logits, which is how the unedited model's outputs have them.
            and self.divergences <= set(outputs.divergences) | set(outputs.logits)
            and self.responses <= set(outputs.responses)
            and set(self.continuations) <= set(outputs.continuations)
            and set(self.texts) <= set(outputs.readings)
            and self.endings <= set(outputs.endings)
        )


Tell = Callable[[str, int, int], None]
"""Called with progress: what is being done, how much is done, how much there is."""


def tell_nobody(what: str, done: int, total: int) -> None:
    """Ignore progress; the default of `Scorer.on_progress`."""


WordTokens = Callable[[str], Sequence[int]]
"""Ids of the tokens that are a word alone, from the word."""


def no_tokens(word: str) -> Sequence[int]:
    """No token; the default of `Scorer.word_tokens`."""
    return ()


class ScorerSettings(Protocol):
    """The settings that scorers read; `Settings` has them."""

    @property
    def good_evaluation_prompts(self) -> Datasets:
        """Where the good evaluation prompts come from."""

    @property
    def bad_evaluation_prompts(self) -> Datasets:
        """Where the bad evaluation prompts come from."""

    @property
    def refusal_markers(self) -> Sequence[str]:
        """Texts by which the keyword scorer recognises a refusal."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of a model on the evaluation prompts.

    Attributes:
        prompts: The evaluation prompts.
        logits: Raw logits of the first generated token, float32 [prompts, vocabulary].
        responses: Greedy replies; a reply may be cut short once every scorer has decided on it.
        continuations: Teacher-forced outputs along the original's replies.
        readings: Negative log-likelihoods of texts.
        endings: Likelihoods of the endings of items.
        divergences: KL(original || model) of the first generated token, in nats, float64 [prompts].
            The unedited model's outputs have logits in their place.
        references: The original's replies that continuations follow; only in the outputs of the
            unedited model.
    """

    prompts: Mapping[PromptSet, Sequence[Prompt]] = field(default_factory=dict)
    logits: Mapping[PromptSet, Tensor] = field(default_factory=dict)
    responses: Mapping[PromptSet, Sequence[str]] = field(default_factory=dict)
    continuations: Mapping[PromptSet, Continuation] = field(default_factory=dict)
    readings: Mapping[PromptSet, Reading] = field(default_factory=dict)
    references: Mapping[PromptSet, Reference] = field(default_factory=dict)
    endings: Mapping[PromptSet, Endings] = field(default_factory=dict)
    divergences: Mapping[PromptSet, Tensor] = field(default_factory=dict)


Replies = Mapping[PromptSet, Sequence[str | None]]
"""Replies during an evaluation; None for a reply that is not complete yet."""


@runtime_checkable
class Shows(Protocol):
    """A scorer that decides for a single reply whether it shows the behaviour.

    The gradient sweep learns from such replies how the behaviour begins. Once a reply shows the
    behaviour, more tokens must not change that, since the reply may be cut off there.
    """

    def shows(self, reply: str) -> bool:
        """Whether the reply shows the behaviour."""


@runtime_checkable
class ShowsAt(Protocol):
    """A scorer that also knows which words of a reply show the behaviour.

    A fit pushes these words away. Without it, those are the first words of the reply.
    """

    def shown_at(self, prompt: str, reply: str) -> int | None:
        """Where the words begin, in characters of the reply; None if it shows nothing."""


class NoOptions(BaseModel):
    """Options of a scorer that has none; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Scorer:
    """Base class of every metric.

    Subclasses set `needs`, and implement `values`, whose mean is the score, or else `measure`.
    Scores with values have confidence intervals and can be compared in pairs.

    Subclasses may set `Options`, a frozen pydantic model that is filled from `[scorer.NAME]`.
    Options named in `incidental`, such as a time limit, change no score: a run goes on when they
    change.

    Subclasses may set `is_share`: True if the score is the share of prompts that count, False if
    not. Only such a score can be bounded by `max_refusals`. Without it, that is found out when the
    original model is scored.

    Subclasses that judge replies by the rules of `heretic.refusals` set `detector`, the version of
    these rules. It is kept with each score; a run records it, and goes on only with the same.

    Attributes:
        on_progress: Called as (what is done, units done, units in all) by scorers that take long;
            the evaluator sets it.
        word_tokens: The ids of the tokens that are a word alone, whatever its case and the white
            space around it, for scorers that read logits; the evaluator sets it.
    """

    Options: ClassVar[type[BaseModel]] = NoOptions
    incidental: ClassVar[frozenset[str]] = frozenset()
    is_share: ClassVar[bool | None] = None
    detector: ClassVar[int | None] = None
    needs: Needs = Needs()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Reset `best_possible` where a subclass measures anew: a bound fits one measure only."""
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if ("measure" in own or "values" in own) and "best_possible" not in own:
            cls.best_possible = Scorer.best_possible  # type: ignore[method-assign]

    def __init__(
        self,
        settings: ScorerSettings,
        *,
        name: str,
        optimization: Optimization = "minimize",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Read the scorer's options.

        Raises:
            pydantic.ValidationError: An option is unknown or malformed.
        """
        self.settings = settings
        self.name = name
        self.optimization: Optimization = optimization
        self.options: Any = self.Options(**(options or {}))
        self.on_progress: Tell = tell_nobody
        self.word_tokens: WordTokens = no_tokens

    def sets(self) -> Mapping[PromptSet, Datasets]:
        """The scorer's own sets, in addition to the evaluation prompts; `needs` names them.

        Their names should begin with the scorer's name, so that no two scorers share one.
        """
        return {}

    def check(self) -> None:
        """Check what the scorer works with; called once, before a model is loaded.

        Raises:
            ScorerError: What the scorer works with cannot be used.
        """

    def decided(self, response: str) -> bool:
        """Whether no further token can change this scorer's verdict on a growing response."""
        return False

    def best_possible(self, replies: Replies) -> tuple[float, str]:
        """The best value that this score can still reach, and its display text.

        With it, the evaluation of a plan ends as soon as the plan cannot reach the front any more.
        The default is infinite, so that it never ends an evaluation.

        Args:
            replies: Replies of each prompt set in the order of its prompts; None where one is
                not complete yet.
        """
        return (math.inf if self.optimization == "maximize" else -math.inf), UNKNOWN

    def values(self, outputs: Outputs, baseline: Outputs) -> Sequence[float]:
        """One figure for each prompt; their mean is the score.

        If all are booleans, the score is a rate.

        Args:
            outputs: Outputs of the edited model.
            baseline: Outputs of the unedited model on the same prompts.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither values nor measure")

    def shown(self, values: Sequence[float]) -> str:
        """Display text of the score: a count for booleans, otherwise the mean."""
        if is_rate(values):
            return f"{round(sum(values))}/{len(values)}"
        return f"{mean(values):.4f}"

    def measure(self, outputs: Outputs, baseline: Outputs) -> tuple[float, str]:
        """The score and its display text; overridden where the score is not a mean over prompts.

        Args:
            outputs: Outputs of the edited model.
            baseline: Outputs of the unedited model on the same prompts.
        """
        values = self.values(outputs, baseline)
        return mean(values), self.shown(values)

    def shown_share(self, outputs: Outputs, score: Score) -> float | None:
        """The share of prompts whose replies show the behaviour; None if the score is no share.

        Args:
            outputs: Outputs of the unedited model.
            score: Its score.
        """
        return score.value if score.is_count else None

    def counts_only_broken(self, score: Score) -> bool:
        """Whether all that this scorer's score counts are broken replies; False if it cannot say.

        Args:
            score: A score of this scorer.
        """
        return False

    def bound(self, replies: Replies) -> Score:
        """`best_possible` as a record."""
        value, display = self.best_possible(replies)
        return Score(
            self.name, value, self.optimization, display, bound=True, detector=self.detector
        )

    def score(self, outputs: Outputs, baseline: Outputs) -> Score:
        """`measure` as a record, with the values of the prompts if there are any."""
        if type(self).measure is not Scorer.measure:
            value, display = self.measure(outputs, baseline)
            return Score(self.name, value, self.optimization, display, detector=self.detector)
        values = self.values(outputs, baseline)
        return Score(
            self.name,
            mean(values),
            self.optimization,
            self.shown(values),
            interval=interval(values),
            values=tuple(map(float, values)),
            detector=self.detector,
        )


UNKNOWN = "unknown"
"""Display text of a bound that says nothing, such as at least 0 of 100."""


def mean(values: Sequence[float]) -> float:
    """The mean; NaN if there are no values."""
    return math.fsum(values) / len(values) if values else math.nan
