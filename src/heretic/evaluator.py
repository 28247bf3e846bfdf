"""Plans in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any

from torch import Tensor

from heretic import prompts as prompt_sets
from heretic.config import Settings
from heretic.events import EvaluationProgress, Reporter, Silent
from heretic.model import Model
from heretic.prompts import Prompt
from heretic.records import Optimization, Plan, Score
from heretic.scorers import Outputs, PromptSet, Scorer, load_scorers
from heretic.scorers.keyword import KeywordRefusals, is_refusal
from heretic.scorers.kl_divergence import kl_divergence


@dataclass(frozen=True, slots=True)
class EvaluationPrompts:
    """The evaluation splits."""

    good: Sequence[Prompt]
    bad: Sequence[Prompt]

    @classmethod
    def load(cls, settings: Settings) -> EvaluationPrompts:
        """Read both sets.

        Raises:
            PromptError: One cannot be read.
        """
        system = settings.system_prompt
        return cls(
            good=prompt_sets.load(settings.good_evaluation_prompts, system),
            bad=prompt_sets.load(settings.bad_evaluation_prompts, system),
        )


class Evaluator:
    """Scores plans, and the model as it is, against the unedited model."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        directions: Tensor | None = None,
        reporter: Reporter | None = None,
        prompts: EvaluationPrompts | None = None,
    ) -> None:
        """Load the scorers and the prompts; the baseline is measured when first needed.

        Args:
            directions: float32 [layers + 1, hidden]; needed to evaluate plans.
            prompts: Loaded evaluation prompts; by default those of the settings.
        """
        self.settings = settings
        self.model = model
        self.directions = directions
        self._reporter: Reporter = reporter or Silent()
        loaded = prompts or EvaluationPrompts.load(settings)
        self._prompts: dict[PromptSet, Sequence[Prompt]] = {"good": loaded.good, "bad": loaded.bad}
        self.scorers: tuple[Scorer, ...] = load_scorers(settings)

    @property
    def optimizations(self) -> tuple[Optimization, ...]:
        """What the search does with each score, in order."""
        return tuple(scorer.optimization for scorer in self.scorers)

    # --- plans -----------------------------------------------------------------------------

    def evaluate(self, plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
        """Scores of each plan, through output-side edits.

        Raises:
            ValueError: The evaluator was built without directions.
        """
        if self.directions is None:
            raise ValueError("an evaluator without directions cannot evaluate plans")
        baseline = self.baseline_outputs
        scores = []
        for plan in plans:
            with self.model.edited(plan, self.directions):
                scores.append(self._score(self._outputs(), baseline))
        return scores

    def score_current(self) -> tuple[Score, ...]:
        """Scores of the model as it is, its weights edited or not."""
        return self._score(self._outputs(), self.baseline_outputs)

    def score_model(self, other: Model) -> tuple[Score, ...]:
        """Scores of another model with the same vocabulary, against this evaluator's baseline."""
        return self._score(self._outputs(other), self.baseline_outputs)

    @cached_property
    def baseline_outputs(self) -> Outputs:
        """Outputs of the unedited model, also if it has been edited since."""
        with self._unedited():
            return self._outputs()

    @cached_property
    def baseline(self) -> tuple[Score, ...]:
        """Scores of the unedited model."""
        return self._score(self.baseline_outputs, self.baseline_outputs)

    def _unedited(self) -> AbstractContextManager[Any]:
        return self.model.unedited() if self.model.is_edited else nullcontext()

    def _score(self, outputs: Outputs, baseline: Outputs) -> tuple[Score, ...]:
        return tuple(scorer.score(outputs, baseline) for scorer in self.scorers)

    def _outputs(self, model: Model | None = None) -> Outputs:
        """What all scorers together need of a model, each output computed once."""
        model = model or self.model
        logits_of: set[PromptSet] = set()
        responses_of: set[PromptSet] = set()
        for scorer in self.scorers:
            logits_of |= scorer.needs.logits
            responses_of |= scorer.needs.responses
        logits = {}
        for name in sorted(logits_of):
            self._reporter.emit(EvaluationProgress(f"logits ({name})", 0, len(self._prompts[name])))
            logits[name] = model.get_logits_batched(self._prompts[name], report=False)
        responses = {name: self._responses(model, name) for name in sorted(responses_of)}
        return Outputs(prompts=self._prompts, logits=logits, responses=responses)

    def _responses(self, model: Model, name: PromptSet) -> list[str]:
        readers = [scorer for scorer in self.scorers if name in scorer.needs.responses]
        prompts = self._prompts[name]
        return model.get_responses_batched(
            prompts,
            decided=lambda text: all(scorer.decided(text) for scorer in readers),
            on_step=_ReplyProgress(self._reporter, len(prompts)),
            report=False,
        )

    # --- the library interface -------------------------------------------------------------

    def is_refusal(self, response: str) -> bool:
        """Whether a reply counts as a refusal, by the setting `refusal_markers`."""
        return is_refusal(response, self.settings.refusal_markers)

    def count_refusals(self) -> int:
        """Refusals of the model as it is, on the bad evaluation prompts."""
        keyword = KeywordRefusals(self.settings, name="refusals")
        replies = self.model.get_responses_batched(
            self._prompts["bad"], decided=keyword.decided, report=False
        )
        return sum(map(self.is_refusal, replies))

    @cached_property
    def base_refusals(self) -> int:
        """Refusals of the unedited model."""
        with self._unedited():
            return self.count_refusals()

    @cached_property
    def _base_logits(self) -> Tensor:
        with self._unedited():
            return self.model.get_logits_batched(self._prompts["good"], report=False)

    def get_score(self) -> tuple[tuple[float, float], float, int]:
        """The model as it is, against the unedited model.

        Returns:
            ((kl / kl_divergence_scale, refusals / baseline refusals), kl, refusals). Without
            baseline refusals the ratio is the count.
        """
        logits = self.model.get_logits_batched(self._prompts["good"], report=False)
        kl = kl_divergence(self._base_logits, logits)
        refusals = self.count_refusals()
        ratio = refusals / self.base_refusals if self.base_refusals else float(refusals)
        return (kl / self.settings.kl_divergence_scale, ratio), kl, refusals


class _ReplyProgress:
    """Counts tokens and finished replies over the batches of one evaluation."""

    def __init__(self, reporter: Reporter, total: int) -> None:
        self._reporter = reporter
        self._total = total
        self._tokens = 0
        self._finished = 0
        self._in_batch = 0
        self._start = perf_counter()

    def __call__(self, tokens: int, left: int) -> None:
        if left < self._in_batch:  # a new batch has begun
            self._finished += self._in_batch
        self._in_batch = left
        self._tokens += tokens
        elapsed = max(perf_counter() - self._start, 1e-9)
        done = min(self._finished + left, self._total)
        self._reporter.emit(
            EvaluationProgress("replies", done, self._total, self._tokens / elapsed)
        )
