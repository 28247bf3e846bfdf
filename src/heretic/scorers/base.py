"""The scorer protocol.

A scorer says which outputs it needs; the evaluator computes each once and hands them over. A scorer
never touches the model, so it cannot tell how, or with how many other plans, an edit was made.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from heretic.config import Settings
from heretic.prompts import Prompt
from heretic.records import Optimization, Score

PromptSet = Literal["good", "bad"]
"""The good or the bad evaluation prompts."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Outputs that a scorer reads."""

    logits: frozenset[PromptSet] = frozenset()
    responses: frozenset[PromptSet] = frozenset()


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model put out on the evaluation prompts.

    Attributes:
        prompts: The evaluation prompts.
        logits: Raw logits of the first generated token, float32 [prompts, vocabulary].
        responses: Greedy replies; one that every scorer had decided may be cut short.
    """

    prompts: Mapping[PromptSet, Sequence[Prompt]] = field(default_factory=dict)
    logits: Mapping[PromptSet, Tensor] = field(default_factory=dict)
    responses: Mapping[PromptSet, Sequence[str]] = field(default_factory=dict)


Replies = Mapping[PromptSet, Sequence[str | None]]
"""Replies of an evaluation that is under way, None where there is none yet."""


class NoOptions(BaseModel):
    """Options of a scorer that has none; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Scorer(ABC):
    """Base class of every metric.

    Subclasses set `needs`, may set `Options` (a frozen pydantic model, filled from
    `[scorer.NAME]`), and implement `measure`.
    """

    Options: ClassVar[type[BaseModel]] = NoOptions
    needs: ClassVar[Needs] = Needs()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A bound belongs to the measure it was written for: another measure begins without."""
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "measure" in own and "best_possible" not in own:
            cls.best_possible = Scorer.best_possible  # type: ignore[method-assign]

    def __init__(
        self,
        settings: Settings,
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

    @abstractmethod
    def measure(self, outputs: Outputs, baseline: Outputs) -> tuple[float, str]:
        """The figure and how people read it.

        Args:
            outputs: Of the edited model.
            baseline: Of the unedited model, on the same prompts.
        """

    def bound(self, replies: Replies) -> Score:
        """`best_possible` as a record."""
        value, display = self.best_possible(replies)
        return Score(self.name, value, self.optimization, display, bound=True)

    def score(self, outputs: Outputs, baseline: Outputs) -> Score:
        """`measure` as a record."""
        value, display = self.measure(outputs, baseline)
        return Score(self.name, value, self.optimization, display)
