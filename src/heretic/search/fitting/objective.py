"""What a fit minimises, as a function of its vectors.

    damage + trade_off * (push + pull)

Damage is KL(original || edited) at the first token and along the original's own replies to good
prompts. Replies to bad prompts are no part of it, not even those that do not show the behaviour:
there the original is often close to showing it, and what keeps its distribution keeps that too.

The push is softplus(log p - aim) for the words by which replies showed the behaviour, or by which
they broke: log p is their joint log-probability after what stands before them. Words that are
unlikely enough no longer count. The pull is KL(teacher || edited) along replies that do not show
the behaviour, of a model that an ablation edited: they say what to write instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from heretic.architectures.resolver import Writer
from heretic.errors import StudyError
from heretic.method.edits import OutputEdit
from heretic.model.capture import forward_arguments
from heretic.model.core import Model
from heretic.model.editing import install, sites_of
from heretic.model.teacher_forcing import kept_divergence
from heretic.search.activations import lean
from heretic.search.fitting.texts import Kept, Pushed
from heretic.system import memory


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens that are read, and where the next token is predicted.

    Attributes:
        places: Indices of tokens after which the prediction counts.
        term: Maps log-probabilities there, float32 [places, vocabulary], to a number.
        share: Factor of the term in the sum.
        damages: Whether the term is damage, and neither push nor pull.
    """

    ids: Sequence[int]
    places: Sequence[int]
    term: Callable[[Tensor], Tensor]
    share: float
    damages: bool


@dataclass(frozen=True, slots=True)
class Sum:
    """The objective on one mini-batch, and its gradients.

    Attributes:
        gradients: By write and read vectors, on the CPU.
        damage: Of the texts along which the model shall not change.
        push: The rest, times the trade-off.
    """

    gradients: Sequence[Tensor]
    damage: float
    push: float


@dataclass(slots=True)
class Objective:
    """Damage and push of a model's edits by these vectors.

    Attributes:
        writers: Those that are edited.
        components: Names of the components, in the order of the vectors' first dimension.
        aim: Log-probability below which words hardly pull.
        along: Weight of the divergence along replies, beside that of the first token.
        positions: Positions of a reply, drawn at random, that are looked at.
        rows_at_once: Rows that fit into memory together; it shrinks.
    """

    model: Model
    writers: Sequence[Writer]
    components: Sequence[str]
    aim: float
    along: float = 1.0
    positions: int = 6
    rows_at_once: int = 64

    def rows(
        self,
        kept: Sequence[Kept],
        wanted: Sequence[Kept],
        pushed: Sequence[Pushed],
        trade_off: float,
        rng: random.Random,
    ) -> list[Row]:
        """What one step reads.

        Args:
            kept: Texts along which the model shall not change.
            wanted: Replies to bad prompts as they should be.
        """
        found = [self._kept_row(text, 1 / len(kept), rng, damages=True) for text in kept]
        found += [
            self._kept_row(text, trade_off / len(wanted), rng, damages=False) for text in wanted
        ]
        found += [
            Row(
                text.ids,
                range(text.first, len(text.ids)),
                _Push(text, self.aim),
                trade_off / len(pushed),
                damages=False,
            )
            for text in pushed
        ]
        return found

    def _kept_row(self, text: Kept, share: float, rng: random.Random, *, damages: bool) -> Row:
        count = len(text.tokens)
        later = sorted(rng.sample(range(1, count), min(self.positions, count - 1)))
        chosen = [0, *later]
        weights = torch.tensor([1.0] + [self.along / len(later)] * len(later))
        return Row(
            text.ids[: text.first + 1 + chosen[-1]],
            [text.first + place for place in chosen],
            _Divergence(text.tokens[chosen], text.logprobs[chosen], weights),
            share,
            damages=damages,
        )

    @torch.enable_grad()
    def sum(self, write: Tensor, read: Tensor, rows: Sequence[Row]) -> Sum:
        """The objective and its gradients by `write` and `read` [components, layers, k, hidden].

        Raises:
            ModelError: Even one row does not fit into memory.
            StudyError: The model gives no logits where they are asked for.
        """
        # On the model's device, so that no edit of a layer waits for a copy.
        device = self.model.device
        vectors = [part.detach().to(device, copy=True).requires_grad_() for part in (write, read)]
        gradients = [torch.zeros_like(part) for part in vectors]
        totals: list[Tensor] = []  # damage and push of each batch
        order = sorted(rows, key=lambda row: -len(row.ids))

        def work(part: slice) -> None:
            some = order[part]
            with self._edited(*vectors), lean(self.model, [row.ids for row in some]):
                found = self._logprobs(some)
                terms = [row.share * row.term(own) for row, own in zip(some, found, strict=True)]
                values = torch.stack(terms)
                new = torch.autograd.grad(values.sum(), vectors)
            for own, more in zip(gradients, new, strict=True):
                own.add_(more)
            kinds = [[row.damages, not row.damages] for row in some]
            totals.append(values.detach() @ torch.tensor(kinds).to(values))

        def notify(size: int) -> None:
            self.model.say(f"Out of memory: the fit now reads {size} texts at once")

        at_once = min(self.rows_at_once, len(order))
        self.rows_at_once = max(memory.halving(len(order), at_once, work, notify), 1)
        # Only here does a step wait for the device.
        damage, push = torch.stack(totals).sum(dim=0).tolist()
        return Sum([part.cpu() for part in gradients], damage, push)

    @contextmanager
    def _edited(self, write: Tensor, read: Tensor) -> Iterator[None]:
        def edit_of(writer: Writer) -> OutputEdit:
            return output_edit(writer, self.components, write, read)

        with install(sites_of(self.writers), edit_of):
            yield

    def _logprobs(self, rows: Sequence[Row]) -> Sequence[Tensor]:
        """Log-probabilities at the places of each row, float32 [places, vocabulary].

        The head is given these places only: with whole rows, most of the time and memory would go
        into logits that nobody reads. They are made contiguous, since torch's linear map of a
        strided input is up to 600 times slower in half precision on a CPU.
        """
        model = self.model
        batch = model.renderer.padded([list(row.ids) for row in rows]).to(model.device)
        width = batch["input_ids"].shape[1]
        row_of = [number for number, row in enumerate(rows) for _ in row.places]
        column = [place + width - len(row.ids) for row in rows for place in row.places]

        def pick(module: nn.Module, args: Any) -> tuple[Tensor]:
            return (args[0][row_of, column].unsqueeze(0).contiguous(),)

        arguments = forward_arguments(model.model, batch["attention_mask"], 0)
        handle = model.model.get_output_embeddings().register_forward_pre_hook(pick)
        try:
            output = model.model(input_ids=batch["input_ids"], use_cache=False, **arguments)
        finally:
            handle.remove()
        if output.logits.shape[:2] != (1, len(column)):
            raise StudyError(
                "The model's logits cannot be had at single positions.",
                remedy="Set search to ablation.",
            )
        logprobs = output.logits[0].float().log_softmax(dim=-1)
        return torch.split(logprobs, [len(row.places) for row in rows])


def output_edit(
    writer: Writer, components: Sequence[str], write: Tensor, read: Tensor
) -> OutputEdit:
    """A writer's edit by vectors [components, layers, k, hidden]; row norms are not kept."""
    place = components.index(writer.component), writer.layer
    moves = writer.edited_in_sum("none")
    return OutputEdit(
        write[place], read[place], None, torch.ones_like(read[place][0]), moves_bias=moves
    )


@dataclass(frozen=True, slots=True)
class _Push:
    text: Pushed
    aim: float

    def __call__(self, logprobs: Tensor) -> Tensor:
        targets = torch.tensor(self.text.targets, device=logprobs.device)
        joint = logprobs.gather(1, targets.unsqueeze(1)).sum()
        return functional.softplus(joint - self.aim)


@dataclass(frozen=True, slots=True)
class _Divergence:
    tokens: Tensor
    before: Tensor
    weights: Tensor

    def __call__(self, logprobs: Tensor) -> Tensor:
        before, weights = (part.to(logprobs.device) for part in (self.before, self.weights))
        after = logprobs.gather(1, self.tokens.to(logprobs.device))
        return (kept_divergence(before, after) * weights).sum()
