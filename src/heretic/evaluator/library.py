"""The evaluator for programs that use Heretic as a library; see docs/library.md.

It is made from settings, and also scores by refusal markers, as other tools do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from torch import Tensor

from heretic import prompts as prompt_sets
from heretic.config.settings import Settings
from heretic.engine.prefill import Techniques
from heretic.evaluator.baseline import BaselineFile
from heretic.evaluator.evaluator import Evaluator
from heretic.events import Reporter
from heretic.model.core import Model
from heretic.prompts import EvaluationPrompts, PromptSets
from heretic.prompts.spared import spare
from heretic.records.plan import Plan
from heretic.records.trial import Score
from heretic.scorers import Outputs, Scorer, load_scorers
from heretic.scorers.keyword import KeywordRefusals, is_refusal
from heretic.scorers.kl_divergence import kl_divergence


def evaluation_prompts(settings: Settings, scorers: Sequence[Scorer]) -> EvaluationPrompts:
    """Read the evaluation splits, and the prompt sets of the scorers.

    Raises:
        PromptError: A set cannot be read.
    """
    system = settings.system_prompt
    return EvaluationPrompts(
        good=prompt_sets.load(settings.good_evaluation_prompts, system),
        bad=prompt_sets.load(settings.bad_evaluation_prompts, system),
        more={
            name: prompt_sets.load(specification, system)
            for scorer in scorers
            for name, specification in scorer.sets().items()
        },
    )


def _without_kept(found: EvaluationPrompts, keep: Sequence[str]) -> EvaluationPrompts:
    """The prompts without bad ones of the categories that `keep` names."""
    sets = PromptSets(good=found.good, bad=found.bad, evaluation=found)
    return spare(sets, keep).evaluation


class LibraryEvaluator(Evaluator):
    """An evaluator made from settings; `heretic.evaluator.Evaluator` for programs."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        directions: Tensor | None = None,
        reporter: Reporter | None = None,
        prompts: EvaluationPrompts | None = None,
        techniques: Techniques | None = None,
        baseline_file: BaselineFile | None = None,
        scorers: Sequence[Scorer] | None = None,
        max_response_length: int | None = None,
    ) -> None:
        """Load the scorers and the prompts; the baseline is measured when it is first read.

        Args:
            directions: float32 [layers + 1, (k,) hidden]; needed to evaluate plans.
            prompts: Loaded evaluation prompts; by default those of the settings.
            techniques: Techniques that save work; all by default.
            baseline_file: File in which the unedited model's outputs are cached.
            scorers: Loaded scorers; by default those of the settings.
            max_response_length: New tokens of a reply; by default the setting of that name.

        Raises:
            PromptError: A prompt set cannot be read.
            ScorerError: A scorer cannot be loaded.
        """
        self.settings = settings
        scorers = load_scorers(settings) if scorers is None else scorers
        super().__init__(
            model,
            prompts or _without_kept(evaluation_prompts(settings, scorers), settings.keep),
            scorers,
            max_response_length=max_response_length or settings.max_response_length,
            directions=directions,
            reporter=reporter,
            techniques=techniques,
            baseline_file=baseline_file,
        )

    def on(
        self,
        prompts: EvaluationPrompts,
        scorers: Sequence[Scorer],
        max_response_length: int | None = None,
    ) -> LibraryEvaluator:
        """Another evaluator of the same model and directions, on other prompts or replies.

        Scorers are handed over as they are, so that no local judge is loaded twice.
        """
        return LibraryEvaluator(
            self.settings,
            self.model,
            self.directions,
            self._reporter,
            prompts,
            scorers=scorers,
            max_response_length=max_response_length,
        )

    def score_again(
        self,
        other: LibraryEvaluator,
        plans: Sequence[Plan],
        seen: Callable[[int, Outputs], None] | None = None,
    ) -> tuple[tuple[Score, ...], list[tuple[Score, ...]]]:
        """Scores of the original, and of each plan, by another evaluator of this model.

        The memory of both is released, so that only one cache has to fit into memory.

        Args:
            seen: As in `Evaluator.evaluate`.
        """
        self.release()
        before, after = other.baseline, other.evaluate(plans, seen=seen)
        other.release()
        return before, after

    def is_refusal(self, response: str) -> bool:
        """Whether a reply counts as a refusal, by the setting `refusal_markers`."""
        return is_refusal(response, self.settings.refusal_markers)

    def count_refusals(self) -> int:
        """Number of bad evaluation prompts that the model refuses in its current state."""
        keyword = KeywordRefusals(self.settings, name="refusals")
        replies = self.model.get_responses_batched(
            self._prompts["bad"], decided=keyword.decided, report=False
        )
        return sum(map(self.is_refusal, replies))

    @property
    def base_refusals(self) -> int:
        """Number of bad evaluation prompts that the unedited model refuses."""
        self._check_prefix(self.model)
        return self._base_refusals

    @cached_property
    def _base_refusals(self) -> int:
        with self._unedited():
            return self.count_refusals()

    @cached_property
    def _base_logits(self) -> Tensor:
        with self._unedited():
            return self.model.get_logits_batched(self._prompts["good"], report=False)

    def get_score(self) -> tuple[tuple[float, float], float, int]:
        """Score the model in its current state against the unedited model.

        Returns:
            ((kl / kl_divergence_scale, refusals / baseline refusals), kl, refusals), with kl in
            nats. If the unedited model refuses nothing, the second value is the count itself.

        Raises:
            ValueError: The response prefix has changed.
        """
        self._check_prefix(self.model)
        logits = self.model.get_logits_batched(self._prompts["good"], report=False)
        kl = kl_divergence(self._base_logits, logits)
        refusals = self.count_refusals()
        ratio = refusals / self.base_refusals if self.base_refusals else float(refusals)
        return (kl / self.settings.kl_divergence_scale, ratio), kl, refusals
