"""Judges: the share of replies to which a language model, or a classifier, gives a certain label.

`LLMJudge` asks any OpenAI-compatible endpoint; replies leave the machine unless it is a local one.
`ClassifierJudge` runs a model from the Hub or a folder here. docs/judges.md says how to set them.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from heretic.judging.client import Judge
from heretic.judging.options import JudgeOptions
from heretic.judging.records import Item, Usage, Verdict
from heretic.prompts import Prompt
from heretic.scorers.base import Outputs, Replies
from heretic.scorers.local_judges import ClassifierOptions, LocalJudge
from heretic.scorers.replies import OnPrompts, ReplyScorer

_log = logging.getLogger(__name__)


class LLMJudgeOptions(JudgeOptions, OnPrompts):
    """Options of `LLMJudge`."""


class ClassifierJudgeOptions(ClassifierOptions, OnPrompts):
    """Options of `ClassifierJudge`."""


class _Judging(ReplyScorer):
    """The share of replies whose label counts."""

    @abstractmethod
    def verdicts(self, prompts: Sequence[Prompt], replies: Sequence[str]) -> list[Verdict]:
        """One verdict for each reply, in order; for use outside a search too.

        Raises:
            ScorerError: A reply got no verdict.
        """

    def values(self, outputs: Outputs, baseline: Outputs) -> list[bool]:
        """Whether each reply's label counts.

        Raises:
            ScorerError: A reply got no verdict.
        """
        found = self.verdicts(outputs.prompts[self.set], outputs.responses[self.set])
        return [verdict.label in self.options.counts for verdict in found]

    def best_possible(self, replies: Replies) -> tuple[float, str]:
        """A share's end: replies are judged together, when all are there."""
        total = len(replies[self.set])
        if self.optimization == "maximize":
            return 1.0, f"at most {total}/{total}"
        return 0.0, f"at least 0/{total}"


def _items(prompts: Sequence[Prompt], replies: Sequence[str]) -> list[Item]:
    pairs = zip(prompts, replies, strict=True)
    return [Item(prompt.user, reply, prompt.system) for prompt, reply in pairs]


class LLMJudge(_Judging):
    """A language model behind an OpenAI-compatible endpoint; see `judging.options`."""

    Options: ClassVar[type[BaseModel]] = LLMJudgeOptions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Read the options; nothing is asked yet."""
        super().__init__(*args, **kwargs)
        self._judge = Judge(self.options)

    @property
    def usage(self) -> Usage:
        """Requests, retries and tokens so far."""
        return self._judge.usage

    def check(self) -> None:
        """One request, to find a missing key or an unknown model before the search.

        Raises:
            ScorerError: The judge cannot be used.
        """
        self._judge.check()

    def verdicts(self, prompts: Sequence[Prompt], replies: Sequence[str]) -> list[Verdict]:
        """One verdict for each reply, in order; what it took goes to the log.

        Raises:
            ScorerError: A reply got no verdict; what was judged is kept on disk.
        """
        before = self.usage
        try:
            return self._judge.verdicts(_items(prompts, replies))
        finally:
            prices = self.options.price_in, self.options.price_out
            spent = (self.usage - before).summary(*prices)
            _log.info("%s: %s; so far %s", self.name, spent, self.usage.summary(*prices))


class ClassifierJudge(_Judging):
    """A classifier or a guard model from the Hub or a folder; see `local_judges`."""

    Options: ClassVar[type[BaseModel]] = ClassifierJudgeOptions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Read the options; nothing is loaded yet."""
        super().__init__(*args, **kwargs)
        self._judge = LocalJudge(self.settings, self.options, self.name)

    def check(self) -> None:
        """Read the judge's configuration and tokenizer, not its weights.

        Raises:
            ScorerError: There is no such model, or it is of another kind than the options expect.
        """
        self._judge.check()

    def verdicts(self, prompts: Sequence[Prompt], replies: Sequence[str]) -> list[Verdict]:
        """One verdict for each reply, in order.

        Raises:
            ScorerError: The model cannot be run, or a guard's answer is none of its labels.
        """
        return self._judge.verdicts(_items(prompts, replies))
