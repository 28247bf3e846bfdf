"""Rows that are decoded together. A row is a prompt under one plan, in a slot of the cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heretic.engine.decoder import Decoder
from heretic.engine.graphs import on_its_way
from heretic.engine.prefill import Pair, Prefill
from heretic.engine.shapes import Shape
from heretic.model import generation
from heretic.model.choice import most_likely
from heretic.model.editing import RowEdits

if TYPE_CHECKING:
    from heretic.model.core import Model


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


@dataclass(slots=True, eq=False)
class Row:
    """A row in a slot.

    Attributes:
        start: Its first column in the cache.
        ids: The reply so far, as it was last looked at.
        made: Tokens made or being made; those after the reply's end count too.
        done: Whether its reply is finished, or its plan dropped.
    """

    plan: int
    prompt: int
    start: int
    ids: list[int] = field(default_factory=list)
    made: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens that were made, or are being made, for these rows.

    Attributes:
        tokens: Waits for them; [rows][steps].
    """

    rows: Sequence[Row]
    tokens: Callable[[], list[list[int]]]


class Batch:
    """Live rows, in order in the slots 0, 1, ... of the decoder's cache."""

    def __init__(
        self, model: Model, decoder: Decoder, edits: RowEdits, wanted: Request, length: int
    ) -> None:
        self.decoder, self.cache, self.edits = decoder, decoder.cache, edits
        self.rows: list[Row] = []
        self.stepped = False
        self._model, self._wanted, self._length = model, wanted, length
        self._end_tokens = generation.end_tokens(model.model, model.tokenizer)
        self._blocks: deque[Block] = deque()  # not looked at yet
        self._end = 0  # columns before this one are written
        # Memory that a shape reads beyond the live rows must be finite. Known to be so:
        self._ahead = 0, 0  # slots before the first number, columns from `_end` to the second
        self._spare = 0, 0, 0  # slots from the first number to the second, columns from the third
        self._settled: Shape | None = None  # all that this shape reads, with the rows as they are

    def admit(self, prefill: Prefill, name: str, pairs: Sequence[Pair]) -> Tensor:
        """Run prompts, each under its plan, into free slots, which makes their first tokens.

        Returns:
            The logits after the prompts, [prompts, vocabulary].
        """
        plans, chunk = [plan for plan, _ in pairs], [prompt for _, prompt in pairs]
        width, prompts = prefill.columns(name, chunk), prefill.sets[name]
        if not self.rows:
            self._end, self._ahead = width, (0, 0)
        elif self._end < width:
            self._move_to(width)
        first, start = len(self.rows), self._end - width
        down = self.decoder.schedule.down
        oldest = min((row.start for row in self.rows), default=start)
        # All rows read from the first column that any row uses.
        self.cache.clear(first, first + len(chunk), down(min(start, oldest)), start)
        self.cache.clear(0, first, down(start), oldest)
        logits = prefill(name, pairs, self.edits, self.cache, first, self._end)[:, -1]
        self.stepped = self.stepped and first > 0
        tokens = most_likely(logits)
        positions = [len(prompts.head) + len(prompts.tails[prompt]) for prompt in chunk]
        self.decoder.rows.begin(first, tokens, positions, self._length - 1, plans)
        new = [Row(plan, prompt, start, made=1) for plan, prompt in pairs]
        self.rows += new
        self._spare = max(self._spare[0], len(self.rows)), *self._spare[1:]
        self._blocks.append(Block(new, on_its_way(tokens.unsqueeze(1))))
        self._settled = None
        return logits

    def _move_to(self, end: int) -> None:
        begin = min(row.start for row in self.rows)
        self.cache.move_columns(len(self.rows), begin, self._end, end)
        for row in self.rows:
            row.start += end - self._end
        self._end, self._ahead, self._settled = end, (0, 0), None

    def step(self) -> None:
        """Make the next tokens of every row, and look at those that were made."""
        self.stepped = True
        steps = min(self.decoder.schedule.steps, max(self._length - row.made for row in self.rows))
        if steps <= 0:
            self._look_until(0)
            return
        shape = self._shape(steps)
        plans = [row.plan for row in self.rows]
        tokens = self.decoder.make(shape, self._end, steps, self.edits, plans)
        self._end += steps
        for row in self.rows:
            row.made += steps
        self._blocks.append(Block(list(self.rows), tokens))
        self.look()

    def _shape(self, steps: int) -> Shape:
        """The shape of so many steps, with room for them."""
        begin, decoder = min(row.start for row in self.rows), self.decoder
        if self._end + steps > self.cache.columns or begin >= decoder.schedule.columns > 1:
            self._move_to(self._end - begin)
            begin = 0
        shape = decoder.shape(len(self.rows), begin, self._end + steps)
        self._clear(shape)
        decoder.rows.column.fill_(self._end)
        return shape

    def _clear(self, shape: Shape) -> None:
        """Clear what the shape has beyond the live rows and the columns that they have written."""
        if shape == self._settled:
            return
        written = self._end + 1  # the next step writes before it reads
        slots, end = self._ahead
        if slots < shape.rows or end < shape.end:
            self.cache.clear(0, shape.rows, written, shape.end)
            self._ahead = shape.rows, shape.end
        if len(self.rows) < shape.rows:
            self._clear_spare(shape, written)
        self._settled = shape

    def _clear_spare(self, shape: Shape, written: int) -> None:
        """Make spare rows of those that have left since, or of all that the shape has."""
        count = len(self.rows)
        first, last, begin = self._spare
        known = first <= shape.rows <= last and begin <= shape.begin
        until = first if known else shape.rows
        if count < until:
            self.cache.clear(count, until, shape.begin, written)
            self.cache.mask[count:until] = False
            self.decoder.rows.rest(count, until)
        self._spare = count, last if known else shape.rows, shape.begin

    def logits_after(self, tokens: Sequence[int]) -> Tensor:
        """Logits after one more token of every row, [rows, vocabulary], in the model's dtype.

        The tokens take the place of those that the rows have made last.
        """
        decoder = self.decoder
        decoder.rows.tokens[: len(tokens)] = torch.tensor(tokens, device=self._model.device)
        return decoder.logits(self._shape(1), self.edits, [row.plan for row in self.rows])

    def look(self) -> None:
        """Look at tokens that were made; rows with a done reply leave.

        Where looking overlaps with making tokens, the latest ones are left for the next time.
        """
        self._look_until(1 if self.decoder.schedule.overlaps else 0)

    def _look_until(self, left: int) -> None:
        while len(self._blocks) > left:
            self._take_in(self._blocks.popleft())

    def _take_in(self, block: Block) -> None:
        """Add tokens to their rows; rows with a done reply leave."""
        made = [
            (row, new) for row, new in zip(block.rows, block.tokens(), strict=True) if not row.done
        ]
        for row, new in made:
            row.done = self._grow(row, new)
        self._wanted.report(sum(len(new) for _, new in made))
        for row in self.rows:
            row.done = row.done or row.plan in self._wanted.dropped
        self._remove_done()

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

    def _remove_done(self) -> None:
        """Free the slots of rows that are done; the last rows move into the holes."""
        staying = [index for index, row in enumerate(self.rows) if not row.done]
        count = len(staying)
        if count == len(self.rows):
            return
        holes = [index for index in range(count) if self.rows[index].done]
        movers = [index for index in staying if index >= count]
        if holes:
            # All rows that stay read from the first column that any of them uses.
            begin = min(self.rows[index].start for index in staying)
            begin = self.decoder.schedule.down(begin)
            self.cache.move_rows(movers, holes, begin, self._end)
            self.decoder.rows.move(movers, holes)
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
        del self.rows[count:]
        self._settled = None
