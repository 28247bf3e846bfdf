"""The scorer protocol.

A scorer says which outputs it needs; the evaluator computes each once and hands them over. A scorer
never touches the model, so it cannot tell how, or with how many other plans, an edit was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from heretic.config.tables import DatasetSpecification
from heretic.model.outputs import Continuation, Reading, Reference
from heretic.prompts import Prompt
from heretic.records.statistics import interval, is_rate
from heretic.records.trial import Optimization, Score

PromptSet = str
"""`good` or `bad`, the evaluation prompts; or the name of a set that a scorer brings along."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Outputs that a scorer reads.

    Attributes:
        logits: Sets of which it reads the first generated token's logits.
        responses: Sets of which it reads replies.
        continuations: Sets of which it reads what the model makes of the original's own replies,
            with how many of their first tokens.
        texts: Sets that are texts to be read, not prompts to be answered, with how many tokens of
            each.
    """

    logits: frozenset[PromptSet] = frozenset()
    responses: frozenset[PromptSet] = frozenset()
    continuations: Mapping[PromptSet, int] = field(default_factory=dict)
    texts: Mapping[PromptSet, int] = field(default_factory=dict)

    def are_met(self, outputs: Outputs) -> bool:
        """Whether outputs hold all of it."""
        return (
            self.logits <= set(outputs.logits)
            and self.responses <= set(outputs.responses)
            and set(self.continuations) <= set(outputs.continuations)
            and set(self.texts) <= set(outputs.readings)
        )


Tell = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and of how much."""


def tell_nobody(what: str, done: int, total: int) -> None:
    """Nobody is there to be told."""


class ScorerSettings(Protocol):
    """The settings that scorers read; `Settings` has them."""

    @property
    def refusal_markers(self) -> Sequence[str]:
        """Texts by which the keyword scorer knows a refusal."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model put out on the evaluation prompts.

    Attributes:
        prompts: The evaluation prompts.
        logits: Raw logits of the first generated token, float32 [prompts, vocabulary].
        responses: Greedy replies; one that every scorer had decided may be cut short.
        continuations: What it makes of the original's replies.
        readings: What it makes of texts.
        references: The original's replies that continuations follow; of the unedited model only.
    """

    prompts: Mapping[PromptSet, Sequence[Prompt]] = field(default_factory=dict)
    logits: Mapping[PromptSet, Tensor] = field(default_factory=dict)
    responses: Mapping[PromptSet, Sequence[str]] = field(default_factory=dict)
    continuations: Mapping[PromptSet, Continuation] = field(default_factory=dict)
    readings: Mapping[PromptSet, Reading] = field(default_factory=dict)
    references: Mapping[PromptSet, Reference] = field(default_factory=dict)


Replies = Mapping[PromptSet, Sequence[str | None]]
"""Replies of an evaluation that is under way, None where there is none yet."""


@runtime_checkable
class Shows(Protocol):
    """A scorer that can tell of a single reply whether it shows the behaviour.

    The gradient sweep learns from such replies how the behaviour begins. A reply that shows it must
    not cease to as it grows: it may be cut off there.
    """

    def shows(self, reply: str) -> bool:
        """Whether it does."""


class NoOptions(BaseModel):
    """Options of a scorer that has none; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Scorer:
    """Base class of every metric.

    Subclasses set `needs`, may set `Options` (a frozen pydantic model, filled from
    `[scorer.NAME]`; those named in `incidental` change no figure, such as a time limit, so that a
    run goes on with other ones), and implement `values`, of which the figure is the mean, or else
    `measure`. Figures with values have intervals and can be compared in pairs.

    Attributes:
        tell: Called with progress by scorers that take long; the evaluator sets it.
    """

    Options: ClassVar[type[BaseModel]] = NoOptions
    incidental: ClassVar[frozenset[str]] = frozenset()
    needs: Needs = Needs()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A bound belongs to the measure it was written for: another measure begins without."""
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
        self.tell: Tell = tell_nobody

    def sets(self) -> Mapping[PromptSet, DatasetSpecification]:
        """Sets that the scorer brings along, beside the evaluation prompts; `needs` names them.

        Names should begin with the scorer's own, so that no two scorers mean different sets.
        """
        return {}

    def check(self) -> None:
        """Find what would stop every measure: asked once, before a model is loaded.

        Raises:
            ScorerError: What the scorer works with cannot be used.
        """

    def decided(self, response: str) -> bool:
        """Whether no further token can change this scorer's verdict on a growing response."""
        return False

    def best_possible(self, replies: Replies) -> tuple[float, str]:
        """The best this score can still become, and how people read it.

        It lets the evaluation of a plan end as soon as it cannot reach the front any more. Scorers
        that cannot tell leave it at what no other plan beats.

        Args:
            replies: By prompt set, in the order of the prompts; None where there is none yet.
        """
        return (math.inf if self.optimization == "maximize" else -math.inf), "unknown"

    def values(self, outputs: Outputs, baseline: Outputs) -> Sequence[float]:
        """One figure for each prompt; their mean is the score.

        Booleans, if each is yes or no: then the score is a rate.

        Args:
            outputs: Of the edited model.
            baseline: Of the unedited model, on the same prompts.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither values nor measure")

    def shown(self, values: Sequence[float]) -> str:
        """How people read the mean of values: a count where each is yes or no."""
        if is_rate(values):
            return f"{round(sum(values))}/{len(values)}"
        return f"{mean(values):.4f}"

    def measure(self, outputs: Outputs, baseline: Outputs) -> tuple[float, str]:
        """The figure and how people read it, where it is no mean over prompts.

        Args:
            outputs: Of the edited model.
            baseline: Of the unedited model, on the same prompts.
        """
        values = self.values(outputs, baseline)
        return mean(values), self.shown(values)

    def bound(self, replies: Replies) -> Score:
        """`best_possible` as a record."""
        value, display = self.best_possible(replies)
        return Score(self.name, value, self.optimization, display, bound=True)

    def score(self, outputs: Outputs, baseline: Outputs) -> Score:
        """`measure` as a record, with the values behind it where there are any."""
        if type(self).measure is not Scorer.measure:
            value, display = self.measure(outputs, baseline)
            return Score(self.name, value, self.optimization, display)
        values = self.values(outputs, baseline)
        return Score(
            self.name,
            mean(values),
            self.optimization,
            self.shown(values),
            interval=interval(values),
            values=tuple(map(float, values)),
        )


def mean(values: Sequence[float]) -> float:
    """Their mean; NaN of none."""
    return math.fsum(values) / len(values) if values else math.nan
