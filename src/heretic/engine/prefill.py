"""Turns prompts into first-token logits and filled cache slots, with the least work.

The head that all prompts of a set share is computed once per plan. Layers below the plan's first
edited one are not computed at all, since their results are the original's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heretic.engine.originals import (
    EncodedPrompts,
    Originals,
    checkpoint_layers,
    output_lengths,
    recorded,
    starting_at,
)
from heretic.engine.slots import SlotCache, States
from heretic.model.editing import RowEdits
from heretic.model.endings import EncodedItem
from heretic.model.masks import Masks

if TYPE_CHECKING:
    from heretic.model.core import Model
    from heretic.model.reading import Prompts

TOKENS_ON_CPU, TOKENS_ON_ACCELERATOR = 1024, 8192
"""Most prompt tokens of one forward pass: they keep the processor busy and need little memory."""

KEPT_SHARE = 0.25
"""Share of the cache's size that kept states of the original may take."""


Pair = tuple[int, int]
"""A row to be read: the numbers of a plan and of a prompt."""


def of_one_plan(prompts: Iterable[int]) -> list[Pair]:
    """Pairs of the only plan."""
    return [(0, prompt) for prompt in prompts]


@dataclass(frozen=True, slots=True)
class Techniques:
    """Techniques that save work; benchmarks switch one off at a time.

    Attributes:
        share_batches: Let rows of all plans share batches; without it the rest is off too.
        share_head: Compute the prompts' common head once per plan.
        reuse_originals: Start at the plan's first edited layer.
        refill: Give the slot of a row that has left to a waiting row.
    """

    share_batches: bool = True
    share_head: bool = True
    reuse_originals: bool = True
    refill: bool = True


class Prefill:
    """Encoded prompt sets of one model, and the unedited model's states on them.

    Args:
        prompts: Prompt sets by name; none is empty.
        replied: Names of the sets that will get replies.
        techniques: Techniques that save work.
        kept_share: Share of the cache's size that kept states of the original may take.
        items: Sets of items by name, whose endings are branches of one row for each item.

    Attributes:
        sets: Encoded prompts and items by the set's name.
    """

    def __init__(
        self,
        model: Model,
        prompts: Mapping[str, Prompts],
        replied: Collection[str],
        techniques: Techniques,
        kept_share: float = KEPT_SHARE,
        items: Mapping[str, Sequence[EncodedItem]] | None = None,
    ) -> None:
        self._model = model
        self._replied = frozenset(replied)
        self._kept_share = kept_share if techniques.reuse_originals else 0.0
        self._prefix = model.response_prefix
        self.sets = {
            name: EncodedPrompts.split(model.encode_rows(rows), techniques.share_head)
            for name, rows in prompts.items()
        } | {
            name: EncodedPrompts.of_items(rows, techniques.share_head)
            for name, rows in (items or {}).items()
        }
        on_cpu = model.device.type == "cpu"
        self._tokens = TOKENS_ON_CPU if on_cpu else TOKENS_ON_ACCELERATOR
        self._originals: dict[str, Originals] = {}
        self._lengths: dict[int, int] = {}
        self._heads: dict[tuple[str, int], States] = {}  # by set and plan

    def prepare(self, name: str, cache: SlotCache) -> None:
        """Record the unedited model's states on a set, once; no slot may be in use.

        Raises:
            ValueError: The model's response prefix has changed since the prompts were encoded.
        """
        if self._model.response_prefix != self._prefix:
            raise ValueError("the response prefix was changed: make a new engine")
        if name not in self._originals:
            wanted = self._checkpoints(name, cache)
            self._originals[name] = self._record(name, cache, wanted) if wanted else Originals()

    def forget_plans(self) -> None:
        """Drop the heads computed for plans; needed before plan numbers mean other plans."""
        self._heads.clear()

    def forget_originals(self) -> None:
        """Drop the unedited model's states; `prepare` records them again."""
        self._originals.clear()

    def start(self, name: str, edits: RowEdits, plan: int) -> int:
        """The layer at which a plan's passes over a set begin; `prepare` must have been called."""
        return self._originals[name].start(edits.first_layer(plan))

    def in_order(self, name: str, pairs: Iterable[Pair]) -> list[Pair]:
        """Pairs by the length of their prompts, longest first."""
        tails = self.sets[name].tails
        return sorted(pairs, key=lambda pair: (-len(tails[pair[1]]), pair[1], pair[0]))

    def fitting(self, name: str, ordered: Sequence[Pair], slots: int) -> list[Pair]:
        """The first of these pairs, as many as fit into one forward pass and the slots."""
        tails, plans = self.sets[name].tails, len({plan for plan, _ in ordered})
        most = min(self._model.rows_together(plans), slots)
        longest, found = 0, list[Pair]()
        for pair in ordered[:most]:
            longest = max(longest, len(tails[pair[1]]))
            if found and (len(found) + 1) * longest > self._tokens:
                break
            found.append(pair)
        return found

    def chunks(self, name: str, pairs: Iterable[Pair], slots: int) -> Iterator[list[Pair]]:
        """These pairs in parts that fit into one forward pass and the slots, longest first."""
        ordered = self.in_order(name, pairs)
        while ordered:
            chunk = self.fitting(name, ordered, slots)
            yield chunk
            ordered = ordered[len(chunk) :]

    def columns(self, name: str, chunk: Sequence[int]) -> int:
        """Columns that these prompts take, padding included."""
        rows = self.sets[name]
        return len(rows.head) + max(len(rows.tails[i]) for i in chunk)

    def __call__(
        self,
        name: str,
        pairs: Sequence[Pair],
        edits: RowEdits,
        cache: SlotCache,
        first: int = 0,
        end: int | None = None,
        kept: int = 1,
    ) -> Tensor:
        """Run prompts, each under its plan, into the slots from `first`, columns up to `end`.

        `prepare` must have been called for the set.

        Returns:
            Raw logits after the `kept` last tokens, [rows, kept, vocabulary], in the model's dtype.
        """
        plans, chunk = [plan for plan, _ in pairs], [prompt for _, prompt in pairs]
        end = self.columns(name, chunk) if end is None else end
        originals = self._originals[name]
        start = min(self.start(name, edits, plan) for plan in set(plans))
        missing = sorted({plan for plan in plans if (name, plan) not in self._heads})
        if missing:
            self._edit(edits, missing)
            heads = self._head(name, cache, originals, start, first, len(missing))
            for row, plan in enumerate(missing):
                self._heads[name, plan] = [
                    (layer, keys[row : row + 1], values[row : row + 1])
                    for layer, keys, values in heads
                ]
        self._edit(edits, plans)
        head = self._heads_of(name, plans)
        return self._tails(name, chunk, cache, originals, start, head, first, end, kept)

    def _edit(self, edits: RowEdits, plans: Sequence[int]) -> None:
        """Let each row be edited by its plan; where all have one, in a single product."""
        if len(set(plans)) == 1:
            edits.use(plans[0])
        else:
            edits.use_index(torch.tensor(plans, device=self._model.device))

    def _heads_of(self, name: str, plans: Sequence[int]) -> States:
        """The head's states under the plan of each row; a single row if all have one plan."""
        places = {plan: place for place, plan in enumerate(dict.fromkeys(plans))}
        kept = [self._heads[name, plan] for plan in places]
        if len(kept) == 1:
            return kept[0]
        index = torch.tensor([places[plan] for plan in plans])
        found: States = []
        for parts in zip(*kept, strict=True):
            layers, *both = zip(*parts, strict=True)
            keys, values = (torch.cat(x).index_select(0, index.to(x[0].device)) for x in both)
            found.append((layers[0], keys, values))
        return found

    # --- the passes --------------------------------------------------------------------------

    def _head(
        self,
        name: str,
        cache: SlotCache,
        originals: Originals,
        start: int,
        slot: int,
        rows: int = 1,
    ) -> States:
        """Keys and values of the head, computed in so many free slots from `slot` on."""
        head = self.sets[name].head
        if not head:
            return []
        count, last = len(head), slot + rows
        tokens = torch.tensor([list(head)] * rows)
        positions = torch.arange(count).repeat(rows, 1)
        seen = torch.ones(rows, count, count, dtype=torch.bool).tril()
        masks = cache.layout.masks(seen, positions, None, lambda: positions)
        cache.at(slot, last, 0, count)
        hidden = originals.head_inputs.get(start)
        hidden = None if hidden is None else hidden.expand(rows, *hidden.shape[1:])
        self._forward(tokens, positions, masks, cache, start, hidden)
        # A fresh cache holds nothing in the layers that were skipped.
        below = [
            (layer, keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
            for layer, keys, values in originals.head_states
            if layer < start
        ]
        return below + [row for row in cache.read(slot, last, 0, count) if row[0] >= start]

    def _tails(
        self,
        name: str,
        chunk: Sequence[int],
        cache: SlotCache,
        originals: Originals,
        start: int,
        head: States,
        first: int,
        end: int,
        kept: int = 1,
    ) -> Tensor:
        rows = self.sets[name]
        tails = [rows.tails[i] for i in chunk]
        before, width, last = len(rows.head), max(map(len, tails)), first + len(tails)
        cache.write(head, first, end - width, rows=len(tails))  # a single row is copied
        hidden = None
        if start:
            hidden = originals.tail_inputs[start][list(chunk), -width:]
            cache.write(originals.states_below(start, chunk, width), first, end)
            cache.write_carried(originals.carried_below(start, chunk), first)
        tokens = torch.tensor([[0] * (width - len(tail)) + list(tail) for tail in tails])
        real = torch.tensor([[False] * (width - len(tail)) + [True] * len(tail) for tail in tails])
        cache.mask[first:last] = False
        cache.mask[first:last, end - width - before : end - width] = True
        cache.mask[first:last, end - width : end] = real.to(cache.mask.device)
        # Padding attends to itself, since a row that attends to nothing gives NaN.
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        within = (causal & real[:, None, :]) | torch.eye(width, dtype=torch.bool)
        positions = before + (real.cumsum(dim=-1) - 1).clamp_min(0)
        for row, i in enumerate(chunk):
            rows.branch_out(i, within[row], positions[row])
        seen = torch.cat([torch.ones(len(tails), width, before, dtype=torch.bool), within], dim=-1)
        heads = torch.arange(before).expand(len(tails), -1)
        masks = cache.layout.masks(
            seen, positions, real, lambda: torch.cat([heads, positions], dim=-1)
        )
        cache.at(first, last, end - width - before, end)
        return self._forward(tokens, positions, masks, cache, start, hidden, kept)

    def _forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        masks: Masks,
        cache: SlotCache,
        start: int,
        hidden: Tensor | None,
        kept: int = 1,
    ) -> Tensor:
        """Logits after the last tokens, computed from layer `start` on with its input `hidden`."""
        if not start or hidden is None:
            return self._model.step(tokens, positions, masks, cache, kept)
        with starting_at(self._model.get_layers(), start, hidden, self._lengths):
            return self._model.step(tokens, positions, masks, cache, kept)

    # --- what the unedited model computed ------------------------------------------------------

    def _record(self, name: str, cache: SlotCache, wanted: Sequence[int]) -> Originals:
        """Run the unedited model once over a set and keep the states that plans need."""
        rows, kept, nothing = self.sets[name], Originals(), Originals()
        shape = len(rows.tails), rows.width
        layers = self._model.get_layers()
        with output_lengths(layers) as lengths, recorded(layers, wanted) as inputs:
            kept.head_states = self._head(name, cache, nothing, 0, 0)
            kept.head_inputs = dict(inputs) if rows.head else {}
            for pairs in self.chunks(name, of_one_plan(range(shape[0])), cache.slots):
                chunk = [prompt for _, prompt in pairs]
                end = self.columns(name, chunk)
                self._tails(name, chunk, cache, nothing, 0, kept.head_states, 0, end)
                kept.keep_inputs(chunk, shape, inputs)
                if name in self._replied:
                    below = max(wanted)
                    states = cache.read(0, len(chunk), len(rows.head), end, below)
                    kept.keep_states(chunk, shape, states)
                    kept.keep_carried(chunk, shape[0], cache.read_carried(0, len(chunk), below))
        self._lengths.update(lengths)
        return kept

    def _checkpoints(self, name: str, cache: SlotCache) -> list[int]:
        """Layers whose inputs are kept, as many as the share of the cache's size allows."""
        model, rows = self._model, self.sets[name]
        tokens = len(rows.tails) * rows.width
        per_layer = model.cache_bytes_per_token() // model.n_layers
        carried = len(rows.tails) * model.carried_bytes // model.n_layers
        slot = cache.columns * model.cache_bytes_per_token() + model.carried_bytes
        budget = self._kept_share * cache.slots * slot
        return checkpoint_layers(
            model.n_layers,
            budget / len(self.sets),
            tokens * model.structure.streams * model.hidden_size * model.dtype.itemsize,
            tokens * per_layer + carried if name in self._replied else 0,
        )
