"""Runs blocks of decoding steps on the rows of one cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from heretic.engine.graphs import Graphs, on_its_way
from heretic.engine.shapes import Schedule, Shape
from heretic.engine.slots import SlotCache
from heretic.engine.step import Rows, next_logits, step
from heretic.model import generation
from heretic.model.editing import RowEdits

if TYPE_CHECKING:
    from heretic.model.core import Model


class Decoder:
    """Makes the next tokens of the rows in a cache's slots.

    Args:
        graphs: Recorded steps, where the device has them; what was recorded for another cache is
            forgotten.

    Attributes:
        cache: The rows' keys and values.
        rows: Their tokens and positions.
        schedule: How steps are cut into blocks.
    """

    def __init__(
        self, model: Model, cache: SlotCache, schedule: Schedule, graphs: Graphs | None = None
    ) -> None:
        self.cache, self.schedule = cache, schedule
        end = generation.end_tokens(model.model, model.tokenizer)
        self.rows = Rows(cache.slots, cache.columns, end, model.device)
        self._model, self._graphs = model, graphs
        if graphs is not None:
            graphs.clear()

    def shape(self, rows: int, begin: int, end: int) -> Shape:
        """The shape for so many live rows and the columns begin..end."""
        schedule, cache = self.schedule, self.cache
        return Shape(
            schedule.rounded_rows(rows, cache.slots),
            schedule.down(begin),
            schedule.up(end, cache.columns),
        )

    def logits(self, shape: Shape, edits: RowEdits, plans: Sequence[int]) -> Tensor:
        """Raw logits after each live row's latest token, [rows, vocabulary], in the model's dtype.

        Args:
            plans: The plan of each live row.
        """
        self._edit(shape, edits, plans)
        return next_logits(self._model, self.cache, self.rows, shape)[: len(plans)]

    def make(
        self, shape: Shape, column: int, steps: int, edits: RowEdits, plans: Sequence[int]
    ) -> Callable[[], list[list[int]]]:
        """Make tokens of every row; nothing waits for them.

        Args:
            shape: It has all columns that are written.
            column: The first of them, which `rows.column` holds.
            steps: Tokens to make of each row.
            plans: The plan of each live row.

        Returns:
            Waits for the live rows' tokens, [rows][steps]. Those after a row's end have no meaning.
        """
        self._edit(shape, edits, plans)
        work = partial(step, self._model, self.cache, self.rows, shape)
        for _ in range(steps):
            if self._graphs is not None and self._captures:
                self._graphs.run(shape, edits.version, work)
            else:
                work()
        return on_its_way(self.rows.made[: len(plans), column : column + steps])

    def _edit(self, shape: Shape, edits: RowEdits, plans: Sequence[int]) -> None:
        """Let each row be edited by its plan; where all have one, in a single product."""
        if not self._captures and len(set(plans)) == 1:
            edits.use(plans[0])
        else:
            edits.use_index(self.rows.plans[: shape.rows])

    @property
    def _captures(self) -> bool:
        # A recording would not know of edits that the model itself has in force.
        return self._graphs is not None and not self._model.is_hooked
