"""First-token logits and greedy replies of prompts, and likelihoods, under many edits at once.

A row is a prompt under one plan. Rows of different plans can share a batch, because an edit is a
function of a module's output (`RowEdits`). A row leaves as soon as its reply is decided, and a
waiting row takes its slot (`SlotCache`). States of the unedited model are reused (`Prefill`).

This is continuous batching (Yu et al. 2022, "Orca") with a shared prompt head, on plain buffers and
the model's own forward.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from heretic.engine.batch import Batch, Request
from heretic.engine.decoder import Decoder
from heretic.engine.graphs import Graphs, recorder_for
from heretic.engine.layouts import layout_of
from heretic.engine.prefill import KEPT_SHARE, Pair, Prefill, Techniques, of_one_plan
from heretic.engine.shapes import ELSEWHERE, SCHEDULES
from heretic.engine.slots import SlotCache
from heretic.method.edits import OutputEdit
from heretic.model import capture
from heretic.model.choice import most_likely
from heretic.model.edit_table import EditTable
from heretic.model.editing import RowEdits
from heretic.model.endings import (
    EncodedItem,
    Found,
    gathered,
    plain_endings,
    predicted,
)
from heretic.model.outputs import Endings
from heretic.system import memory

if TYPE_CHECKING:
    from heretic.model.core import Model
    from heretic.model.reading import Prompts

T = TypeVar("T")
_log = logging.getLogger(__name__)

Edits = Mapping[str, OutputEdit]
"""A plan's edits of this model, by writer name (`Model.plan_edits`); empty for the original."""

REFILLED_AT = 4
"""Waiting rows are admitted when one slot in this many is free: a pass of few rows leaves the
processor idle."""


class Engine:
    """Evaluates prompt sets under edits of one model.

    Args:
        model: Its `rows_together` is the number of slots; halved when memory runs out.
        prompts: Prompt sets by name; none is empty.
        replied: Names of the sets that will get replies.
        max_new_tokens: Longest reply, in tokens.
        techniques: Techniques that save work; all by default.
        kept_share: Share of the cache's size that kept states of the original may take.
        items: Sets of items by name; none is empty.
        packs: Whether all endings of an item are read in one row.

    Attributes:
        longest: Tokens of the longest row, with its reply.
        layout: What the model's layers keep of such rows, and which masks they take.
    """

    def __init__(
        self,
        model: Model,
        prompts: Mapping[str, Prompts],
        *,
        replied: Collection[str],
        max_new_tokens: int,
        techniques: Techniques | None = None,
        kept_share: float = KEPT_SHARE,
        items: Mapping[str, Sequence[EncodedItem]] | None = None,
        packs: bool = True,
    ) -> None:
        layout, techniques = layout_of(model.model, model.n_layers), techniques or Techniques()
        if layout.carries:  # padding between a head and a tail would change what is carried
            techniques = replace(techniques, share_head=False)
        self._model, self._techniques = model, techniques
        self._items = items or {}
        self._packs = packs
        self._prefill = Prefill(
            model, prompts, replied, self._techniques, kept_share, self._items if packs else None
        )
        self._max_new_tokens = max_new_tokens
        lengths = (
            rows.length + (max_new_tokens if name in replied else 0)
            for name, rows in self._prefill.sets.items()
        )
        self.longest = max(lengths, default=0)
        self.layout = layout.for_rows(self.longest)
        self._schedule = SCHEDULES.get(model.device.type, ELSEWHERE)
        recorder = recorder_for(model.model)
        self._graphs = None if recorder is None else Graphs(recorder, model.say)
        self._table = None if recorder is None else EditTable()
        self._decoder: Decoder | None = None

    @property
    def sets(self) -> list[str]:
        """Names of the sets that share batches."""
        return list(self._prefill.sets)

    @torch.inference_mode()
    def first_tokens(
        self,
        name: str,
        plans: Sequence[Edits],
        take: Callable[[Sequence[Pair], Tensor], None],
        on_step: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Predict the first generated token of every prompt under every plan.

        Args:
            take: Called for each pass, with the plan and the prompt of each row and with raw
                logits, [rows, vocabulary], in the model's dtype and on its device. Called anew for
                all rows after memory ran out.
            on_step: Called with the number of rows done.

        Raises:
            ModelError: Even a single row does not fit into memory.
        """
        edits = RowEdits(self._model.writers, plans)

        def work(decoder: Decoder) -> None:
            prompts, done = range(len(self._prefill.sets[name].tails)), 0
            for group in self._groups(name, edits, range(len(plans))):
                pairs = [(plan, prompt) for plan in group for prompt in prompts]
                for chunk in self._prefill.chunks(name, pairs, decoder.cache.slots):
                    with edits.installed():
                        rows = self._prefill(name, chunk, edits, decoder.cache)[:, -1]
                    take(chunk, rows)
                    done += len(chunk)
                    on_step(done)

        self._fitting(name, len(plans), work)

    @torch.inference_mode()
    def replies(
        self,
        name: str,
        plans: Sequence[Edits],
        *,
        decided: Callable[[str], bool] = lambda text: False,
        finished: Callable[[int, int, str], bool] = lambda plan, prompt, text: True,
        on_step: Callable[[int, int, int], None] = lambda tokens, done, total: None,
    ) -> list[list[str | None]]:
        """Greedy replies to every prompt under every plan; see `Request` for the arguments.

        Apart from rounding, a plan's replies do not depend on the other plans.

        Returns:
            Replies by plan and prompt; None for the remaining prompts of a dropped plan.

        Raises:
            ModelError: Even a single row does not fit into memory.
        """
        count = len(self._prefill.sets[name].tails)
        wanted = Request([[None] * count for _ in plans], decided, finished, on_step)
        edits = RowEdits(self._model.writers, plans, self._table)

        def work(decoder: Decoder) -> None:
            batch = Batch(self._model, decoder, edits, wanted, self._max_new_tokens)
            with edits.installed():
                self._reply(name, batch, wanted)

        self._fitting(name, len(plans), work)
        return wanted.texts

    @torch.inference_mode()
    def endings(self, name: str, edits: Edits) -> Endings:
        """Likelihoods of the endings of a set of items, each item in one row.

        Raises:
            ModelError: Even a single row does not fit into memory.
        """
        plans, items = RowEdits(self._model.writers, [edits]), self._items[name]
        if not self._packs:
            with plans.installed():
                return plain_endings(self._model, items)

        def work(decoder: Decoder) -> Endings:
            found: list[list[Found]] = [[] for _ in items]
            for chunk in self._item_chunks(name, decoder):
                with plans.installed():
                    rows = self._ending_logits(name, chunk, plans, decoder.cache)
                for i, logits in zip(chunk, rows, strict=True):
                    pairs = zip(items[i].endings, logits, strict=True)
                    found[i] = [predicted(part, ending) for ending, part in pairs]
            return gathered(items, found)

        return self._fitting(name, 1, work)

    def _item_chunks(self, name: str, decoder: Decoder) -> Iterator[list[int]]:
        pairs = of_one_plan(range(len(self._items[name])))
        for chunk in self._prefill.chunks(name, pairs, decoder.cache.slots):
            yield [item for _, item in chunk]

    def _ending_logits(
        self, name: str, chunk: Sequence[int], edits: RowEdits, cache: SlotCache
    ) -> list[list[Tensor]]:
        """Raw logits for the tokens of each ending, [tokens, vocabulary], by item and ending."""
        sources = [self._items[name][i].sources for i in chunk]
        counts = [1 + max(map(max, places)) for places in sources]
        logits = self._prefill(name, of_one_plan(chunk), edits, cache, kept=max(counts))
        return [
            [row[-count:][part] for part in places]
            for row, count, places in zip(logits, counts, sources, strict=True)
        ]

    @torch.inference_mode()
    def deviation(self, name: str) -> float:
        """Largest KL divergence in nats from the model's plain forward.

        That of prompts is taken at first and second tokens, that of items at all tokens of endings.
        The set must be small.
        """
        if name in self._items:
            return self._deviation_of_items(name)
        rows = self._prefill.sets[name]
        nothing = RowEdits(self._model.writers, [{}])

        def work(decoder: Decoder) -> float:
            largest = 0.0
            pairs = of_one_plan(range(len(rows.tails)))
            for chunk in self._prefill.chunks(name, pairs, decoder.cache.slots):
                wanted = Request([[]], lambda text: False, lambda *_: True, lambda *_: None)
                batch = Batch(self._model, decoder, nothing, wanted, self._max_new_tokens)
                first = batch.admit(self._prefill, name, chunk)
                made = most_likely(first).tolist()
                whole = [[*rows.head, *rows.tails[i]] for _, i in chunk]
                plain = self._model.logits_after(whole)
                largest = max(largest, capture.divergence(plain, first))
                plain = self._model.logits_after(
                    [[*r, t] for r, t in zip(whole, made, strict=True)]
                )
                second = batch.logits_after(made)
                largest = max(largest, capture.divergence(plain, second))
                decoder.rows.take(most_likely(second))  # fails if the device lacks an operation
            return largest

        return self._fitting(name, 1, work)

    def _deviation_of_items(self, name: str) -> float:
        items, nothing = self._items[name], RowEdits(self._model.writers, [{}])

        def work(decoder: Decoder) -> float:
            largest = 0.0
            for chunk in self._item_chunks(name, decoder):
                for i, found in zip(
                    chunk, self._ending_logits(name, chunk, nothing, decoder.cache), strict=True
                ):
                    for branch, logits in zip(items[i].branches, found, strict=True):
                        row = [*items[i].context, *branch]
                        plain = self._model.tail_logits([row], len(logits))[0]
                        largest = max(largest, capture.divergence(plain, logits))
            return largest

        return self._fitting(name, 1, work)

    def _fitting(self, name: str, plans: int, work: Callable[[Decoder], T]) -> T:
        """Do the work on this many plans, with fewer slots each time that memory runs out."""
        while True:
            slots = min(
                self._model.rows_together(plans), plans * len(self._prefill.sets[name].tails)
            )
            try:
                return self._attempt(name, slots, work)
            except RuntimeError as error:
                failure = error
            finally:
                self._prefill.forget_plans()
            # Outside the except block, whose traceback keeps the tensors alive.
            self._shrink(slots, failure)

    def _attempt(self, name: str, slots: int, work: Callable[[Decoder], T]) -> T:
        decoder = self._allocated(slots)
        self._prefill.prepare(name, decoder.cache)
        return work(decoder)

    def _shrink(self, slots: int, failure: RuntimeError) -> None:
        """Drop all states and halve the batch that did not fit; raise other errors again."""
        traceback.clear_frames(failure.__traceback__)
        held = slots if self._decoder is None else self._decoder.cache.slots
        self._decoder = None
        self._prefill.forget_originals()
        rows = memory.halved(held, failure)
        if held > slots:  # it was a larger cache, for more plans: without it this batch may fit
            rows = max(slots, self._model.batch_size)
        self._model.notify_fewer_together(rows)

    def _allocated(self, slots: int) -> Decoder:
        """The decoder, replaced by one with a larger cache where it has fewer slots."""
        if self._decoder is None or self._decoder.cache.slots < slots:
            self._decoder = None  # let go of the old one first
            model, columns = self._model, self.longest + self._schedule.spare_columns
            cache = SlotCache(self.layout, slots, columns, model.device)
            self._decoder = Decoder(model, cache, self._schedule, self._graphs)
        return self._decoder

    def _reply(self, name: str, batch: Batch, wanted: Request) -> None:
        """Decode all wanted replies: admit rows where there is room, step, let rows leave."""
        groups = self._groups(name, batch.edits, range(len(wanted.texts)))
        queues = [self._queue(name, batch, wanted, group) for group in groups]
        while queues or batch.rows:
            while queues and self._admits(batch):
                queue = [pair for pair in queues[0] if pair[0] not in wanted.dropped]
                if queue:
                    self._admit(name, batch, queue)
                queues[:1] = [queue] if queue else []
            if batch.rows:
                batch.step()

    def _groups(self, name: str, edits: RowEdits, plans: Iterable[int]) -> list[list[int]]:
        """Plans whose prompts share forward passes: those that begin at the same layer."""
        groups: dict[tuple[int, int], list[int]] = {}
        for plan in plans:
            own = -1 if self._schedule.mixes else plan
            start = self._prefill.start(name, edits, plan)
            groups.setdefault((own, start), []).append(plan)
        return list(groups.values())

    def _queue(self, name: str, batch: Batch, wanted: Request, group: Sequence[int]) -> list[Pair]:
        """What waits for replies under these plans.

        By length where there is room for all, so that passes hold little padding. Else one plan
        after the other, since what is known of the first may end the evaluation of others.
        """
        plans = [[(plan, prompt) for prompt in wanted.waiting(plan)] for plan in group]
        pairs = [pair for own in plans for pair in self._prefill.in_order(name, own)]
        return self._prefill.in_order(name, pairs) if len(pairs) <= batch.cache.slots else pairs

    def _admits(self, batch: Batch) -> bool:
        """Whether enough slots are free for a pass that fills them to be worthwhile."""
        free = batch.cache.slots - len(batch.rows)
        if batch.stepped and not self._techniques.refill:
            return not batch.rows
        return free >= (max(1, batch.cache.slots // REFILLED_AT) if batch.stepped else 1)

    def _admit(self, name: str, batch: Batch, queue: list[Pair]) -> None:
        """Move prompts from a queue to free slots; this also makes their first tokens."""
        chunk = self._prefill.fitting(name, queue, batch.cache.slots - len(batch.rows))
        del queue[: len(chunk)]
        batch.admit(self._prefill, name, chunk)
        batch.look()
