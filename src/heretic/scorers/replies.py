"""Base of scorers that judge each reply by itself, on the bad prompts or on their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from heretic.config.tables import Datasets
from heretic.scorers.base import Needs, PromptSet, Scorer


class OnPrompts(BaseModel):
    """Options of a scorer that can have prompts of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    prompts: Datasets | None = Field(
        None, description="Prompts to score on, in place of the bad evaluation prompts."
    )


class ReplyScorer(Scorer):
    """Reads the replies to one set of prompts, `self.set`."""

    Options: ClassVar[type[BaseModel]] = OnPrompts

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Read the options."""
        super().__init__(*args, **kwargs)
        own = self.options.prompts is not None
        self.set: PromptSet = f"{self.name}.prompts" if own else "bad"
        self.needs = Needs(responses=frozenset({self.set}))

    def sets(self) -> Mapping[PromptSet, Datasets]:
        """The scorer's own prompts under the name `self.set`; empty if it has none."""
        prompts = self.options.prompts
        return {} if prompts is None else {self.set: prompts}
