"""Judges: the share of replies to which a language model, or a classifier, gives a certain label.

`LLMJudge` asks any OpenAI-compatible endpoint; replies leave the machine unless it is a local one.
`ClassifierJudge` runs a model from the Hub or a folder here. docs/judges.md says how to set them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

from pydantic import BaseModel

from heretic.judges.client import EndpointJudge
from heretic.judges.local import ClassifierOptions, LocalJudge
from heretic.judges.options import JudgeOptions
from heretic.judges.records import Item, Usage, Verdict
from heretic.prompts import Prompt
from heretic.scorers.base import UNKNOWN, Outputs, Replies
from heretic.scorers.replies import OnPrompts, ReplyScorer

_log = logging.getLogger(__name__)


class LLMJudgeOptions(JudgeOptions, OnPrompts):
    """Options of `LLMJudge`."""


class ClassifierJudgeOptions(ClassifierOptions, OnPrompts):
    """Options of `ClassifierJudge`."""


class _Judging(ReplyScorer):
    """The share of replies whose label counts."""

    is_share = True
    _judge: EndpointJudge | LocalJudge

    def check(self) -> None:
        """Check the judge at little cost; see `EndpointJudge.check` and `LocalJudge.check`.

        Raises:
            ScorerError: The judge cannot be used.
        """
        self._judge.check()

    def verdicts(
        self,
        prompts: Sequence[Prompt],
        replies: Sequence[str],
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Verdict]:
        """One verdict for each reply, in order; for use outside a search too.

        Args:
            on_step: Called with (replies judged, all replies).

        Raises:
            ScorerError: A reply got no verdict. An endpoint's verdicts so far are kept on disk.
        """
        pairs = zip(prompts, replies, strict=True)
        items = [Item(prompt.user, reply, prompt.system) for prompt, reply in pairs]
        with self._accounted():
            return self._judge.verdicts(items, on_step)

    def _accounted(self) -> AbstractContextManager[None]:
        """Log the cost of the verdicts made in the block, if the judge has costs."""
        return nullcontext()

    def values(self, outputs: Outputs, baseline: Outputs) -> list[bool]:
        """Whether each reply's label counts.

        Raises:
            ScorerError: A reply got no verdict.
        """
        found = self.verdicts(
            outputs.prompts[self.set],
            outputs.responses[self.set],
            partial(self.on_progress, f"{self.name}, judged"),
        )
        return [verdict.label in self.options.counts for verdict in found]

    def best_possible(self, replies: Replies) -> tuple[float, str]:
        """The end of the scale, since replies are judged only when all are complete."""
        return (1.0 if self.optimization == "maximize" else 0.0), UNKNOWN


class LLMJudge(_Judging):
    """A language model behind an OpenAI-compatible endpoint; see `heretic.judges.options`."""

    Options: ClassVar[type[BaseModel]] = LLMJudgeOptions
    incidental: ClassVar[frozenset[str]] = frozenset(
        (
            "api_key_env",
            "cache_folder",
            "concurrency",
            "max_retries",
            "price_in",
            "price_out",
            "timeout",
        )
    )
    _judge: EndpointJudge

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Read the options; no request is sent yet."""
        super().__init__(*args, **kwargs)
        self._judge = EndpointJudge(self.options)

    @property
    def usage(self) -> Usage:
        """Requests, retries and tokens so far."""
        return self._judge.usage

    @contextmanager
    def _accounted(self) -> Iterator[None]:
        before = self.usage
        try:
            yield
        finally:
            prices = self.options.price_in, self.options.price_out
            spent = (self.usage - before).summary(*prices)
            _log.info("%s: %s; so far %s", self.name, spent, self.usage.summary(*prices))


class ClassifierJudge(_Judging):
    """A classifier or a guard model from the Hub or a folder; see `heretic.judges.local`."""

    Options: ClassVar[type[BaseModel]] = ClassifierJudgeOptions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Read the options; nothing is loaded yet."""
        super().__init__(*args, **kwargs)
        # The settings of a plugin's own tests may lack it.
        allow_pickle = bool(getattr(self.settings, "allow_pickle", False))
        self._judge = LocalJudge(self.options, self.name, allow_pickle=allow_pickle)
