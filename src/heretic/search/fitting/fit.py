"""The fit: gradient steps in rounds, and after each round a look at what the edited model says.

In a round, Adam (Kingma & Ba 2015, arXiv 1412.6980) moves the vectors of all writers on
mini-batches of the objective, with steps that shrink to the round's end. Then the model, edited as
it is now, replies to the bad prompts. Where it still shows the behaviour, or writes broken text,
the words that tell are added to what the next rounds push away: what is refused late, or in other
words, is thereby seen. Each round is a point of the path, from hardly edited to hardly refusing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from heretic.engine.opening import open_engine
from heretic.errors import StudyError
from heretic.method.edits import OutputEdit
from heretic.model.core import Model
from heretic.model.editing import EditFactory
from heretic.model.reading import Prompts
from heretic.prompts import Prompt
from heretic.records.plan import Plan
from heretic.refusals.degenerate import broken
from heretic.search.fitting.objective import Objective, output_edit
from heretic.search.fitting.progress import DEFAULTS, FitOptions, Progress
from heretic.search.fitting.texts import Kept, ShownAt, kept_texts, pushed_text

ROWS_AT_ONCE, ROWS_AT_ONCE_ON_CPU = 64, 8
"""Texts that are read together at first. A few rows keep a CPU busy, and of a few rows of similar
length less is padding: 30% of the tokens of a step of the real model, in the benchmarks."""

ENDS = (".", "!", "?", "\n", "。")
"""Ends of sentences, where a reply can be decided; asking at every token would take long."""


class Fitting:
    """A fit of a model's writers to prompts.

    Args:
        model: The unedited model.
        good: Prompts on which the model shall not change, protected prompts included.
        bad: Prompts that trigger the behaviour.
        directions: float32 [layers + 1, hidden] or [layers + 1, k, hidden]; read vectors begin
            along the first of them.
        shown_at: Where a reply shows the behaviour.
        seed: Of mini-batches.
        teacher: Makes an ablation whose replies to bad prompts, where they do not show the
            behaviour, say what to write; None if it cannot. Called once, if pushing alone does not
            get far: the fit then begins again.

    Raises:
        StudyError: No layer that is fitted has a direction, or no reply shows the behaviour.
    """

    def __init__(
        self,
        model: Model,
        good: Prompts,
        bad: Prompts,
        directions: Tensor,
        shown_at: ShownAt,
        *,
        seed: int,
        teacher: Callable[[], Plan | None] = lambda: None,
        options: FitOptions = DEFAULTS,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._bad, self._shown_at = model, bad, shown_at
        self._seed, self._options, self._teacher = seed, options, teacher
        self._directions = directions
        basis = directions if directions.dim() == 3 else directions.unsqueeze(1)
        lowest = math.ceil(options.lowest * model.n_layers)
        self._writers = [
            writer
            for writer in model.writers
            if writer.layer >= lowest and basis[writer.layer + 1, 0].any()
        ]
        if not self._writers:
            raise StudyError(
                "No layer that would be fitted has a direction.", remedy="Set search to tpe."
            )
        self.components = model.get_abliterable_components()
        at_once = ROWS_AT_ONCE_ON_CPU if model.device.type == "cpu" else ROWS_AT_ONCE
        self._objective = Objective(
            model, self._writers, self.components, options.aim, rows_at_once=at_once
        )
        self._start = self._first_vectors(basis)
        self._rows = model.encode_rows(bad)
        self._engine = open_engine(
            model, {"bad": bad}, replied={"bad"}, max_new_tokens=options.look_tokens
        )
        self.progress = progress or self._begun()
        self._kept = kept_texts(model, good, options.kept_tokens)
        known = self.progress.teacher
        self._wanted = [] if known is None else self._replies_of(known)

    def _replies_of(self, teacher: Plan) -> list[Kept]:
        """The teacher's replies to bad prompts that neither show the behaviour nor are broken."""
        model, directions = self._model, self._directions
        replies = self._look(model.plan_edits(teacher, directions))
        prompts = [
            prompt
            for prompt, reply in zip(self._bad, replies, strict=True)
            if self._shown_at(_text(prompt), reply) is None and broken(reply) is None
        ]
        with model.edited(teacher, directions):
            return kept_texts(model, prompts, self._options.kept_tokens)

    def _first_vectors(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Write vectors of zeros, and read vectors of which the first is the ablation's."""
        model, options = self._model, self._options
        shape = (len(self.components), model.n_layers, options.rank, model.hidden_size)
        generator = torch.Generator().manual_seed(self._seed)
        others = functional.normalize(torch.randn(shape, generator=generator), dim=-1)
        read = torch.zeros(shape)
        factory = EditFactory(self._writers)
        for writer in self._writers:
            place = self.components.index(writer.component), writer.layer
            ablation = factory.ablation(writer, basis[writer.layer + 1, :1], "none")
            read[place] = others[place]
            read[place][0] = functional.normalize(ablation.read[0].float().cpu(), dim=0)
        return torch.zeros(shape), read

    def _begun(self) -> Progress:
        """Look at the original's replies.

        Raises:
            StudyError: None of them shows the behaviour.
        """
        progress = Progress(moments=self._no_moments())
        self._take_in(progress, self._look({}))
        if not progress.pushed:
            raise StudyError(
                "No reply to a bad prompt shows the behaviour, so there is nothing to fit against.",
                remedy="Check the bad prompts and the scorer, or set search to tpe.",
            )
        return progress

    def _no_moments(self) -> list[tuple[Tensor, Tensor]]:
        return [(torch.zeros_like(part), torch.zeros_like(part)) for part in self._start]

    def _look(self, edits: Mapping[str, OutputEdit]) -> list[str]:
        def decided(text: str) -> bool:
            return text.endswith(ENDS) and self._shown_at("", text) is not None

        [replies] = self._engine.replies("bad", [edits], decided=decided)
        return [reply or "" for reply in replies]

    def _take_in(self, progress: Progress, replies: Sequence[str]) -> None:
        """Push away what replies to the bad prompts show, and where they are broken."""
        places = [
            self._place(prompt, reply) for prompt, reply in zip(self._bad, replies, strict=True)
        ]
        progress.shown.append(sum(at is not None for at in places) / len(places))
        texts = [
            pushed_text(self._model, row, reply, at, self._options.span)
            for row, reply, at in zip(self._rows, replies, places, strict=True)
            if at is not None
        ]
        distinct = dict.fromkeys(text for text in texts if text is not None)
        new = [text for text in distinct if text not in progress.pushed]
        progress.pushed += new
        progress.found = len(new)

    def _place(self, prompt: str | Prompt, reply: str) -> int | None:
        """Where a reply shows the behaviour, or else is broken, in characters."""
        at, loop = self._shown_at(_text(prompt), reply), broken(reply)
        if at is None and loop is not None:
            return sum(loop) // 2  # in the middle of the repetition, not where it is still new
        return at

    def rounds(
        self, on_step: Callable[[int, int], None] = lambda done, total: None
    ) -> Iterator[Progress]:
        """Go on from `progress`, which is yielded after every round, and with a new teacher.

        Args:
            on_step: Called with (steps done, most steps).

        Raises:
            StudyError: The gradient is not finite.
            ModelError: Even one text does not fit into memory.
        """
        progress, options = self.progress, self._options
        total = options.steps * len(options.trade_offs)
        while not progress.is_over(options):
            if progress.is_stuck(options):
                self._ask()
                yield progress
            vectors = [part.clone() for part in (progress.points or [self._start])[-1]]
            number = len(progress.points)
            rng = random.Random(f"{self._seed} {number}")  # noqa: S311 - not a secret
            for step in range(options.steps):
                self._step(vectors, options.trade_offs[number], step, rng)
                on_step(progress.steps, total)
            write, read = vectors
            edits = {w.name: output_edit(w, self.components, write, read) for w in self._writers}
            self._take_in(progress, self._look(edits))
            progress.points.append((write, read))
            yield progress

    def _ask(self) -> None:
        """Begin again with a teacher, if there is one. What was seen is still pushed away."""
        progress, teacher = self.progress, self._teacher()
        if teacher is not None:
            self._wanted = self._replies_of(teacher)
            progress.alone, progress.points, progress.steps = progress.points, [], 0
            progress.shown, progress.moments = progress.shown[:1], self._no_moments()
        progress.asked, progress.teacher = True, teacher

    def _step(self, vectors: list[Tensor], trade_off: float, step: int, rng: random.Random) -> None:
        """Move the vectors by one step.

        Raises:
            StudyError: The gradient is not finite.
        """
        options, progress = self._options, self.progress
        kept = rng.sample(self._kept, min(options.good, len(self._kept)))
        newest = progress.pushed[len(progress.pushed) - progress.found :]
        pushed = rng.sample(newest, min(round(options.newest * options.pushed), len(newest)))
        pushed += rng.sample(
            progress.pushed, min(options.pushed - len(pushed), len(progress.pushed))
        )
        wanted = rng.sample(self._wanted, min(options.wanted, len(self._wanted)))
        rows = self._objective.rows(kept, wanted, pushed, trade_off, rng)
        found = self._objective.sum(vectors[0], vectors[1], rows)
        if not all(bool(gradient.isfinite().all()) for gradient in found.gradients):
            raise StudyError(
                "The gradient of the vectors is not finite.",
                remedy="Try dtypes = bfloat16 or float32, or search = tpe.",
            )
        progress.steps += 1
        shrunk = 1 - (1 - options.last) * step / max(options.steps - 1, 1)
        rate = options.rate * shrunk / math.sqrt(self._model.hidden_size)
        for part, gradient, moments in zip(vectors, found.gradients, progress.moments, strict=True):
            part.sub_(rate * _adam(gradient, moments, progress.steps, options.decays))


def _text(prompt: str | Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt.user


def _adam(
    gradient: Tensor, moments: tuple[Tensor, Tensor], step: int, decays: tuple[float, float]
) -> Tensor:
    """Adam's direction; the moments are updated in place.

    Args:
        step: From 1 on.
    """
    for moment, decay, new in zip(moments, decays, (gradient, gradient.square()), strict=True):
        moment.lerp_(new, 1 - decay)
    first, second = (m / (1 - decay**step) for m, decay in zip(moments, decays, strict=True))
    return first / (second.sqrt() + 1e-12)
