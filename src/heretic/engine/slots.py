"""A key/value cache of fixed slots, in which rows come and go without copies of the whole cache.

Every row has a slot, every token a column. A prefill writes the columns before `Window.end`, a
decoding step the column `Window.column`; both read from `Window.begin` on. So the same buffers
serve prefill and decoding, and rows of different prompts, plans and lengths share a batch. The
attention mask says where a row's tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from heretic.engine.layout import Kept, Layout
from heretic.engine.states import Carried, StateLayer
from heretic.engine.window import Window

States = list[tuple[int, Tensor, Tensor]]
"""Keys and values by layer index, each [rows, heads, tokens, head size]."""


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, heads, columns, size], allocated when first written."""

    def __init__(self, slots: int, columns: int, window: Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._slots, self._columns, self._window = slots, columns, window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate zeros, since masked columns are read too and must hold finite numbers."""
        self.keys, self.values = (
            states.new_zeros(self._slots, states.shape[1], self._columns, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new states [rows, heads, tokens, size] and return all that the rows may read."""
        window = self._window
        if window.column is None:
            self.write(window.first, window.end, key_states, value_states)
        else:
            self._write_at(window.column, key_states, value_states)
        return self.read(window.first, window.last, window.begin, window.end)

    def write(self, first: int, end: int, keys: Tensor, values: Tensor) -> None:
        """Put [rows, heads, tokens, size] into the slots from `first`, columns up to `end`."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        assert self.keys is not None
        assert self.values is not None
        rows, columns = slice(first, first + keys.shape[0]), slice(end - keys.shape[2], end)
        self.keys[rows, :, columns] = keys
        self.values[rows, :, columns] = values

    def _write_at(self, column: Tensor, keys: Tensor, values: Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        assert self.keys is not None
        assert self.values is not None
        first, last, column = self._window.first, self._window.last, column.to(self.keys.device)
        self.keys[first:last].index_copy_(2, column, keys)
        self.values[first:last].index_copy_(2, column, values)

    def read(self, first: int, last: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Views of keys and values, [last - first, heads, end - begin, size]."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys[first:last, :, begin:end], self.values[first:last, :, begin:end]

    def move_rows(self, sources: Tensor, targets: Tensor, begin: int, end: int) -> None:
        """Copy columns begin..end of slots `sources` to slots `targets`."""
        for states in self._states():
            used = states[:, :, begin:end]
            used[targets.to(states.device)] = used[sources.to(states.device)]

    def move_columns(self, rows: int, begin: int, end: int, to: int) -> None:
        """Move columns begin..end of the first `rows` slots so that they end at `to`."""
        for states in self._states():
            states[:rows, :, to - (end - begin) : to] = states[:rows, :, begin:end].clone()

    def _states(self) -> list[Tensor]:
        return [states for states in (self.keys, self.values) if states is not None]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the columns that are read; masks are given complete anyway."""
        return self._window.end - self._window.begin, 0

    def get_seq_length(self) -> int:
        """The first column that is read; positions are given, so nothing depends on it."""
        return self._window.begin

    def get_max_length(self) -> int:
        """Number of columns of a slot."""
        return self._columns


class SlotAndStateLayer(StateLayer, SlotLayer):  # type: ignore[override]
    """Keys and values, and carried states, of one layer that has attention and a recurrence."""

    def __init__(self, slots: int, columns: int, window: Window, number_of_states: int = 1) -> None:
        SlotLayer.__init__(self, slots, columns, window)
        StateLayer.__init__(self, slots, window, number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """See `SlotLayer`."""
        SlotLayer.lazy_initialization(self, *args, **kwargs)


def _layer(kept: Kept, slots: int, columns: int, window: Window) -> SlotLayer | StateLayer:
    if not kept.states:
        return SlotLayer(slots, columns, window)
    if not kept.keys:
        return StateLayer(slots, window, kept.states)
    return SlotAndStateLayer(slots, columns, window, kept.states)


class SlotCache(Cache):
    """What all layers of a model keep, in slots; all layers have the same `window`.

    Attributes:
        layout: What the layers are.
        mask: Which columns of a slot hold tokens of its row, bool [slots, columns]. Its values
            outside the columns that live rows span have no meaning.
    """

    def __init__(self, layout: Layout, slots: int, columns: int, device: torch.device) -> None:
        self.window = Window()
        self.layout, self.slots, self.columns = layout, slots, columns
        self.mask = torch.zeros(slots, columns, dtype=torch.bool, device=device)
        layers: list[Any] = [_layer(kept, slots, columns, self.window) for kept in layout.layers]
        self._layers = {i: one for i, one in enumerate(layers) if isinstance(one, SlotLayer)}
        self._states = {i: one for i, one in enumerate(layers) if isinstance(one, StateLayer)}
        super().__init__(layers=layers)

    def at(
        self, first: int, last: int, begin: int, end: int, column: Tensor | None = None
    ) -> SlotCache:
        """Set where the next forward pass reads and writes; see `Window`."""
        window = self.window
        window.first, window.last, window.begin, window.end = first, last, begin, end
        window.column = column
        for layer in self._states.values():
            layer.point()
        return self

    def positions(self, first: int, last: int, begin: int, end: int) -> Tensor:
        """Positions of the tokens in columns begin..end of the slots first..last, int64.

        Their rows must not begin before these columns. Where there is no token, any number.
        """
        return self.mask[first:last, begin:end].long().cumsum(dim=-1) - 1

    def write(self, states: States, first: int, end: int, rows: int | None = None) -> None:
        """Put states into the slots from `first`, columns up to `end`.

        Args:
            rows: Number of slots that get a copy of a single row; None writes the rows as given.
        """
        for index, keys, values in states:
            repeated = (x if rows is None else x.expand(rows, -1, -1, -1) for x in (keys, values))
            self._layers[index].write(first, end, *repeated)

    def clear(self, first: int, last: int, begin: int, end: int) -> None:
        """Zero columns begin..end of slots first..last.

        Masked states are multiplied by 0, and 0 x NaN is NaN.
        """
        if first >= last or begin >= end:
            return
        for layer in self._layers.values():
            if layer.is_initialized:
                for states in layer.read(first, last, begin, end):
                    states.zero_()

    def read(self, first: int, last: int, begin: int, end: int, below: int | None = None) -> States:
        """Copies of the states there, from every layer (before `below`) that holds any."""
        return [
            (index, keys.clone(), values.clone())
            for index, layer in self._layers.items()
            if layer.is_initialized and (below is None or index < below)
            for keys, values in [layer.read(first, last, begin, end)]
        ]

    def write_carried(self, carried: Carried, first: int) -> None:
        """Put carried states into the slots from `first`."""
        for index, states in carried:
            self._states[index].write_states(first, states)

    def read_carried(self, first: int, last: int, below: int) -> Carried:
        """Copies of the states that slots first..last carry, in the layers before `below`."""
        return [
            (index, layer.read_states(first, last))
            for index, layer in self._states.items()
            if index < below
        ]

    def move_rows(
        self, sources: Sequence[int], targets: Sequence[int], begin: int, end: int
    ) -> None:
        """Copy columns begin..end of slots `sources` to slots `targets`; the two do not overlap."""
        # Moved to the device once: with a copy per layer, every layer would wait for the device.
        source, target = torch.tensor([list(sources), list(targets)], device=self.mask.device)
        for layer in self._layers.values():
            layer.move_rows(source, target, begin, end)
        for states in self._states.values():
            states.move_states(source, target)
        self.mask[target] = self.mask[source]

    def move_columns(self, rows: int, begin: int, end: int, to: int) -> None:
        """Move columns begin..end of the first `rows` slots so that they end at `to`."""
        for layer in self._layers.values():
            layer.move_columns(rows, begin, end, to)
        moved = self.mask[:rows, begin:end].clone()
        self.mask[:rows] = False
        self.mask[:rows, to - (end - begin) : to] = moved
