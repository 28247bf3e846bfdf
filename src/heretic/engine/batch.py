"""Rows that are decoded together. A row is a prompt under one plan, in a slot of the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heretic.engine.prefill import Prefill
from heretic.engine.slots import SlotCache
from heretic.model import generation
from heretic.model.editing import RowEdits
from heretic.model.generation import most_likely

if TYPE_CHECKING:
    from heretic.model.core import Model

LOOK_EVERY = {"cpu": 1}
LOOK_EVERY_ELSEWHERE = 4
"""Steps between two checks of the replies: on an accelerator every check waits for the device.
Tokens that a row makes after its reply is decided are dropped."""


@dataclass(slots=True)
class Request:
    """A request to `Engine.replies`, and the replies so far.

    Attributes:
        texts: Replies by plan and prompt; None if not done yet.
        decided: Called with each growing reply; True ends that reply.
        finished: Called with (plan, prompt, reply) for each reply; False drops the plan's rest.
        on_step: Called with (tokens made, replies done, replies in all) after every step.
        dropped: Plans whose remaining prompts get no replies.
    """

    texts: list[list[str | None]]
    decided: Callable[[str], bool]
    finished: Callable[[int, int, str], bool]
    on_step: Callable[[int, int, int], None]
    dropped: set[int] = field(default_factory=set)

    def waiting(self, plan: int) -> list[int]:
        """Prompts of the plan without a reply."""
        if plan in self.dropped:
            return []
        return [prompt for prompt, text in enumerate(self.texts[plan]) if text is None]

    def finish(self, plan: int, prompt: int, text: str) -> None:
        """Store a reply; drop the plan if `finished` says so."""
        self.texts[plan][prompt] = text
        if not self.finished(plan, prompt, text):
            self.dropped.add(plan)

    def report(self, tokens: int) -> None:
        """Report the progress to `on_step`."""
        left = sum(len(self.waiting(plan)) for plan in range(len(self.texts)))
        total = sum(map(len, self.texts))
        self.on_step(tokens, total - left, total)


@dataclass(slots=True)
class Row:
    """A live row: its plan and prompt, first cache column, next position, and reply so far."""

    plan: int
    prompt: int
    start: int
    position: int
    ids: list[int] = field(default_factory=list)


class Batch:
    """Live rows, in order in the slots 0, 1, ... of the cache."""

    def __init__(
        self, model: Model, cache: SlotCache, edits: RowEdits, wanted: Request, length: int
    ) -> None:
        self.cache, self.edits = cache, edits
        self.rows: list[Row] = []
        self.stepped = False
        self._model, self._wanted, self._length = model, wanted, length
        self._end_tokens = generation.end_tokens(model.model, model.tokenizer)
        self._steps = LOOK_EVERY.get(model.device.type, LOOK_EVERY_ELSEWHERE)
        self._end = 0  # columns before this one are written
        self._plans: list[int] = []  # the plan of each row, as `edits` is set

    def admit(self, prefill: Prefill, name: str, plan: int, chunk: Sequence[int]) -> Tensor:
        """Run prompts into free slots; returns the logits after them, [prompts, vocabulary]."""
        width, prompts = prefill.columns(name, chunk), prefill.sets[name]
        if not self.rows:
            self._end = width
        elif self._end < width:
            self._move_to(width)
        first, start = len(self.rows), self._end - width
        oldest = min((row.start for row in self.rows), default=start)
        # All rows read from the first column that any row uses.
        self.cache.clear(first, first + len(chunk), oldest, start)
        self.cache.clear(0, first, start, oldest)
        logits = prefill(name, chunk, self.edits, plan, self.cache, first, self._end)[:, -1]
        self._plans = []  # prefill has set `edits` to its plan
        self.stepped = self.stepped and first > 0
        self.rows += [
            Row(plan, prompt, start, len(prompts.head) + len(prompts.tails[prompt]))
            for prompt in chunk
        ]
        return logits

    def _move_to(self, end: int) -> None:
        begin = min(row.start for row in self.rows)
        self.cache.move_columns(len(self.rows), begin, self._end, end)
        for row in self.rows:
            row.start += end - self._end
        self._end = end

    def step(self) -> None:
        """Make the next token of every row, or the next few if checking replies is slow."""
        self.stepped = True
        steps = min(self._steps, *(self._length - len(row.ids) for row in self.rows))
        if self._end + steps > self.cache.columns:
            self._move_to(self._end - min(row.start for row in self.rows))
        plans = [row.plan for row in self.rows]
        if plans != self._plans:
            self.edits.use_rows(plans)
            self._plans = plans
        tokens, positions = self._columns([row.ids[-1] for row in self.rows])
        made = []
        for _ in range(steps):
            tokens = most_likely(self._forward(tokens, positions)).unsqueeze(1)
            made.append(tokens)
            positions = positions + 1
        for row in self.rows:
            row.position += steps
        self.take_in(torch.cat(made, dim=1).T.tolist())

    def logits_after(self, tokens: Sequence[int]) -> Tensor:
        """Logits after one more token of every row, [rows, vocabulary], in the model's dtype."""
        return self._forward(*self._columns(tokens))

    def _columns(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The rows' next tokens and their positions, each int64 [rows, 1]."""
        device, positions = self._model.device, [row.position for row in self.rows]
        return (
            torch.tensor(tokens, device=device).unsqueeze(1),
            torch.tensor(positions, device=device).unsqueeze(1),
        )

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        count, begin = len(self.rows), min(row.start for row in self.rows)
        self._end += 1
        self.cache.mask[:count, self._end - 1] = True
        mask = self.cache.mask[:count, None, begin : self._end]
        cache = self.cache.at(0, count, begin, self._end)
        return self._model.step(tokens, positions, mask, cache)[:, -1]

    def take_in(self, made: Sequence[Sequence[int]], first: int = 0) -> None:
        """Add tokens [steps][rows] to rows from index `first` on; rows with a done reply leave."""
        left = []
        for index, row in enumerate(self.rows):
            new = [tokens[index - first] for tokens in made] if index >= first else []
            if new and self._grow(row, new):
                left.append(index)
        self._wanted.report(len(made) * (len(self.rows) - first))
        dropped = self._wanted.dropped
        self._remove({*left, *(i for i, row in enumerate(self.rows) if row.plan in dropped)})

    def _grow(self, row: Row, new: Sequence[int]) -> bool:
        """Add tokens until the reply is done; returns whether it is."""
        room = min(len(new), self._length - len(row.ids))
        ending = next((i for i, token in enumerate(new[:room]) if token in self._end_tokens), None)
        known, added = row.ids, list(new[: room if ending is None else ending])
        row.ids = known + added
        text = self._model.decode(row.ids)
        if self._wanted.decided(text):  # perhaps by fewer tokens: the reply ends there
            texts = (self._model.decode(known + added[: i + 1]) for i in range(len(added) - 1))
            text = next(filter(self._wanted.decided, texts), text)
        elif ending is None and len(row.ids) < self._length:
            return False
        self._wanted.finish(row.plan, row.prompt, text)
        return True

    def _remove(self, leaving: set[int]) -> None:
        """Free these slots; the last rows move into the holes."""
        if not leaving:
            return
        count = len(self.rows) - len(leaving)
        holes = [index for index in sorted(leaving) if index < count]
        movers = [index for index in range(count, len(self.rows)) if index not in leaving]
        if holes:
            # All rows that stay read from the first column that any of them uses.
            begin = min(row.start for index, row in enumerate(self.rows) if index not in leaving)
            self.cache.move_rows(movers, holes, begin, self._end)
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
        del self.rows[count:]
