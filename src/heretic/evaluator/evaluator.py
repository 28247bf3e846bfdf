"""The evaluator: runs plans on the prompts, and scores their outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, cached_property, partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from heretic.engine.engine import Edits, Engine
from heretic.engine.opening import open_engine
from heretic.engine.plain import PlainEngine
from heretic.engine.prefill import Techniques
from heretic.evaluator.baseline import BaselineFile
from heretic.evaluator.first_tokens import FirstTokens, kept_on_device
from heretic.evaluator.race import Race, needs
from heretic.events import EvaluationProgress, Reporter, Silent
from heretic.model.core import Model
from heretic.model.editing import RowEdits
from heretic.model.outputs import Reference
from heretic.model.teacher_forcing import continuation, reading, reference
from heretic.model.words import word_tokens
from heretic.prompts import EvaluationPrompts, Item
from heretic.records.plan import Plan
from heretic.records.trial import Optimization, Score
from heretic.scorers import Outputs, PromptSet, Scorer
from heretic.scorers.base import Tell


class Evaluator:
    """Scores plans, and the model as it is, against the unedited model.

    All replies begin with the response prefix that the model has when the evaluator is made. Scores
    with another prefix would not be comparable, so they raise a `ValueError`.
    """

    def __init__(
        self,
        model: Model,
        prompts: EvaluationPrompts,
        scorers: Sequence[Scorer],
        *,
        max_response_length: int,
        directions: Tensor | None = None,
        reporter: Reporter | None = None,
        techniques: Techniques | None = None,
        baseline_file: BaselineFile | None = None,
    ) -> None:
        """Store the arguments; the baseline is measured when it is first read.

        Args:
            max_response_length: New tokens of each reply.
            directions: float32 [layers + 1, (k,) hidden]; needed to evaluate plans.
            techniques: Techniques that save work; all by default.
            baseline_file: File in which the unedited model's outputs are cached.
        """
        self.model = model
        self.directions = directions
        self.scorers = tuple(scorers)
        self._needs = needs(self.scorers)
        self._max_response_length = max_response_length
        self._reporter: Reporter = reporter or Silent()
        self._techniques = techniques or Techniques()
        self._prefix = model.response_prefix
        self._baseline_file = baseline_file
        self._prompts = prompts.by_name()
        self._copies: dict[PromptSet, dict[torch.device, Tensor]] = {}  # of the original's logits
        self._tell = _progress_to(self._reporter)
        words = cache(partial(word_tokens, model.tokenizer))
        for scorer in self.scorers:
            scorer.on_progress = self._tell
            scorer.word_tokens = words

    @property
    def _sizes(self) -> dict[PromptSet, int]:
        return {name: len(prompts) for name, prompts in self._prompts.items()}

    @property
    def optimizations(self) -> tuple[Optimization, ...]:
        """What the search does with each score, in order."""
        return tuple(scorer.optimization for scorer in self.scorers)

    @property
    def replies_read(self) -> dict[str, int]:
        """Number of replies behind each score that rests on replies, by its name."""
        return {
            scorer.name: sum(self._sizes[name] for name in scorer.needs.responses)
            for scorer in self.scorers
            if scorer.needs.responses
        }

    # --- plans -----------------------------------------------------------------------------

    def evaluate(
        self,
        plans: Sequence[Plan],
        rivals: Collection[tuple[float, ...]] | None = None,
        *,
        directions: Tensor | None = None,
        seen: Callable[[int, Outputs], None] | None = None,
    ) -> list[tuple[Score, ...]]:
        """Scores of each plan, all plans evaluated together through output-side edits.

        Args:
            rivals: Objectives of earlier trials, from `records.trial.objectives`. If given, plans
                race: the evaluation of a plan ends as soon as a rival, or another of these plans,
                is certain to dominate it. Its scores that are unknown by then are bounds.
            directions: Directions in place of the evaluator's own, in the same form.
            seen: Called with the number of each plan and its outputs; not of plans that race.

        Raises:
            ValueError: The evaluator has no directions, or the response prefix has changed.
        """
        directions = self.directions if directions is None else directions
        if directions is None:
            raise ValueError("an evaluator without directions cannot evaluate plans")
        baseline = self.baseline_outputs
        race = Race(self.scorers, baseline, self._sizes, len(plans), rivals)
        with self._unedited():
            edits = [self.model.plan_edits(plan, directions) for plan in plans]
            self._run(self.model, self._engine, edits, race, baseline)
        if seen is not None and rivals is None:
            for plan in range(len(plans)):
                seen(plan, race.outputs(plan, self._prompts))
        return race.scores()

    def score_current(self) -> tuple[Score, ...]:
        """Scores of the model in its current state: original, edited, or within `Model.edited`."""
        return self.score_model(self.model)

    def score_model(self, other: Model) -> tuple[Score, ...]:
        """Scores of another model with the same vocabulary, against this evaluator's baseline."""
        self._check_prefix(other)
        baseline = self.baseline_outputs
        return self._score(self._outputs(other, baseline), baseline)

    def score_alone(self, other: Model) -> tuple[Score, ...]:
        """Scores of another model by scorers that read nothing of the unedited one's outputs.

        The unedited model is not run, which takes half of the time of a first `score_model`.
        """
        self._check_prefix(other)
        outputs = self._outputs(other, Outputs())
        return self._score(outputs, outputs)

    def _check_prefix(self, model: Model) -> None:
        if model.response_prefix != self._prefix:
            raise ValueError(
                f"this evaluator was made for the response prefix {self._prefix!r}, and the "
                f"model's is {model.response_prefix!r}: make a new one, or reset the model's prefix"
            )

    def take_baseline(self, outputs: Outputs) -> None:
        """Take the unedited model's outputs from another process, instead of computing them."""
        self._baseline_outputs = outputs
        self._copies.clear()

    @property
    def baseline_outputs(self) -> Outputs:
        """Outputs of the unedited model, even if the model is edited now."""
        self._check_prefix(self.model)
        return self._baseline_outputs

    @cached_property
    def _baseline_outputs(self) -> Outputs:
        file = self._baseline_file
        kept = file.read(self._prompts) if file is not None else None
        if kept is not None and self._suffices(kept):
            return kept
        with self._unedited():
            references = {
                name: reference(self.model, self._prompts[name], length)
                for name, length in self._needs.continuations.items()
            }
            known = Outputs(references=references)
            outputs = replace(self._outputs(self.model, known), references=references)
        if file is not None:
            file.write(outputs)
        return outputs

    def _suffices(self, kept: Outputs) -> bool:
        """Whether the outputs hold all that the scorers need, for every prompt."""
        needed = self._needs
        likelihoods = {name: found.logprobs for name, found in kept.endings.items()}
        have = {**kept.logits, **kept.responses, **likelihoods}
        return (
            needed.are_met(kept)
            and all(len(rows) == self._sizes[name] for name, rows in have.items())
            and all(
                kept.references[name].tokens.shape[1] >= length
                for name, length in needed.continuations.items()
            )
        )

    @property
    def baseline(self) -> tuple[Score, ...]:
        """Scores of the unedited model."""
        self._check_prefix(self.model)
        return self._baseline

    @cached_property
    def _baseline(self) -> tuple[Score, ...]:
        return self._score(self.baseline_outputs, self.baseline_outputs)

    def _unedited(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.model.is_original else self.model.unedited()

    def _score(self, outputs: Outputs, baseline: Outputs) -> tuple[Score, ...]:
        return tuple(scorer.score(outputs, baseline) for scorer in self.scorers)

    @cached_property
    def _engine(self) -> Engine | PlainEngine:
        """The engine of the unedited model, which keeps the original's states for all plans."""
        return self._open_engine(self.model, self._techniques)

    def release(self) -> None:
        """Free the memory of the engine; the next evaluation allocates it again."""
        self.__dict__.pop("_engine", None)
        self._copies.clear()

    def _open_engine(self, model: Model, techniques: Techniques) -> Engine | PlainEngine:
        needed = self._needs
        return open_engine(
            model,
            {name: self._prompts[name] for name in needed.first_tokens | needed.responses},
            replied=needed.responses,
            max_new_tokens=self._max_response_length,
            techniques=techniques,
            items={name: self._items(name) for name in needed.endings},
        )

    def _items(self, name: PromptSet) -> list[Item]:
        """A set of items.

        Raises:
            ValueError: It is one of prompts.
        """
        found = [item for item in self._prompts[name] if isinstance(item, Item)]
        if len(found) != self._sizes[name] or not found:
            raise ValueError(f"a scorer needs endings of the set {name}, which has no items")
        return found

    def _outputs(self, model: Model, baseline: Outputs) -> Outputs:
        """The outputs that all scorers together need, from a model in its current state.

        Args:
            baseline: The original's logits, from which divergences are measured, and its replies,
                for teacher forcing. Where there are no logits, those of the model are handed on.
        """
        own = model is self.model and model.is_original
        if not own:
            self.release()  # so that only one cache has to fit into memory
        once = replace(self._techniques, reuse_originals=False)  # the model is run only once
        engine = self._engine if own else self._open_engine(model, once)
        race = Race(self.scorers, None, self._sizes)
        self._run(model, engine, [{}], race, baseline)
        return race.outputs(0, self._prompts)

    def _run(
        self,
        model: Model,
        engine: Engine | PlainEngine,
        edits: Sequence[Edits],
        race: Race,
        baseline: Outputs,
    ) -> None:
        """Begin with every plan's first tokens, which are cheap, then the racing plans' rest."""
        self._run_first_tokens(engine, edits, race, baseline.logits)
        needed = self._needs
        for plan, edit in enumerate(edits):
            for name in sorted(needed.endings):
                if not race.is_settled(plan):
                    race.take_endings(plan, name, engine.endings(name, edit))
            if (needed.continuations or needed.texts) and not race.is_settled(plan):
                with RowEdits(model.writers, [edit]).installed():
                    self._run_forced(model, plan, race, baseline.references)
        for name in sorted(needed.responses):
            racing = [plan for plan in range(len(edits)) if not race.is_settled(plan)]
            if racing:
                self._run_replies(engine, name, {plan: edits[plan] for plan in racing}, race)

    def _run_forced(
        self, model: Model, plan: int, race: Race, references: Mapping[PromptSet, Reference]
    ) -> None:
        """Teacher-forced outputs of an edited model on the original's replies and on texts."""
        needed = self._needs
        for name in sorted(needed.continuations):
            found = continuation(model, self._prompts[name], references[name])
            race.take_continuation(plan, name, found)
        for name, length in sorted(needed.texts.items()):
            texts = [prompt.user for prompt in self._prompts[name]]
            race.take_reading(plan, name, reading(model, texts, length))

    def _run_first_tokens(
        self,
        engine: Engine | PlainEngine,
        edits: Sequence[Edits],
        race: Race,
        originals: Mapping[PromptSet, Tensor],
    ) -> None:
        """Predict first tokens; only what scorers read of them comes back from the device."""
        needed, everything = self._needs, range(len(edits))
        copied = {name for name in needed.first_tokens if name not in originals} | needed.logits
        # Logits are large: those of one plan are scored before the next one's are made.
        turns = [(name, [*everything]) for name in sorted(needed.first_tokens - copied)]
        turns += [(name, [plan]) for plan in everything for name in sorted(copied)]
        total, done = sum(self._sizes[name] for name in needed.first_tokens) * len(edits), 0
        for name, plans in turns:
            before = done

            def on_step(rows: int, before: int = before) -> None:
                self._tell("logits", before + rows, total)

            measured = name in needed.divergences and name in originals
            copies = self._copies.setdefault(name, {})
            original = kept_on_device(originals[name], copies) if measured else None
            found = FirstTokens(plans, self._sizes[name], original, copies=name in copied)
            engine.first_tokens(name, [edits[plan] for plan in plans], found.take, on_step)
            for plan, divergences in found.divergences().items():
                race.take_divergences(plan, name, divergences)
            for plan, logits in found.logits().items():
                race.take_logits(plan, name, logits)
            done += self._sizes[name] * len(plans)

    def _run_replies(
        self, engine: Engine | PlainEngine, name: PromptSet, edits: Mapping[int, Edits], race: Race
    ) -> None:
        readers = [scorer for scorer in self.scorers if name in scorer.needs.responses]
        numbers = list(edits)
        engine.replies(
            name,
            list(edits.values()),
            decided=lambda text: all(scorer.decided(text) for scorer in readers),
            finished=lambda row, prompt, text: race.take_reply(numbers[row], name, prompt, text),
            on_step=_ReplyProgress(self._reporter),
        )


def _progress_to(reporter: Reporter) -> Tell:
    """A function that reports progress; scorers keep it, and must not keep the evaluator alive."""
    return lambda what, done, total: reporter.emit(EvaluationProgress(what, done, total))


class _ReplyProgress:
    """Reports the number of finished replies, and generated tokens per second."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._tokens = 0
        self._start = perf_counter()

    def __call__(self, tokens: int, done: int, total: int) -> None:
        self._tokens += tokens
        elapsed = max(perf_counter() - self._start, 1e-9)
        self._reporter.emit(EvaluationProgress("replies", done, total, self._tokens / elapsed))
