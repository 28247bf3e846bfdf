"""States that layers carry from token to token, in slots (Mamba, delta nets, convolutions).

Unlike keys and values they have no columns: a row has one of each, which every token replaces.
Hence rows of a prefill begin without any, and prompts share no head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from heretic.engine.window import Window

Key = tuple[str, int]
"""Which of a layer's states: its kind, `conv` or `recurrent`, and its number."""

Carried = list[tuple[int, dict[Key, Tensor]]]
"""Carried states by layer index, each [rows, ...]."""


class StateLayer(LinearAttentionCacheLayerMixin):
    """The carried states of one layer, [slots, ...], allocated when first written.

    It keeps transformers' protocol: what a forward pass finds in `conv_states` and
    `recurrent_states` are the rows of the window, and it may change them in place.
    """

    def __init__(self, slots: int, window: Window, number_of_states: int = 1) -> None:
        super().__init__(number_of_states)
        self._slots, self._window = slots, window
        self._buffers: dict[Key, Tensor] = {}

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """States are allocated by `_put`."""

    def point(self) -> None:
        """Offer the rows of the window; a decoding step goes on from their states."""
        continuing = self._window.column is not None
        for number in range(self.number_of_states):
            self.has_previous_state[number] = continuing
            self.conv_states[number] = self._rows(("conv", number))
            self.recurrent_states[number] = self._rows(("recurrent", number))

    def _rows(self, key: Key) -> Tensor | None:
        buffer = self._buffers.get(key)
        return None if buffer is None else buffer[self._window.first : self._window.last]

    def update_conv_state(
        self,
        conv_states: Tensor,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Keep the last inputs of a convolution, [rows, channels, tokens].

        Returns:
            The inputs with those before them.
        """
        size = conv_states.shape[-1] if conv_kernel_size is None else conv_kernel_size
        before = self.conv_states[state_idx]
        if self.has_previous_state[state_idx] and before is not None:
            size = before.shape[-1]
            conv_states = torch.cat([before, conv_states], dim=-1)
        elif conv_states.shape[-1] < size:
            conv_states = torch.nn.functional.pad(conv_states, (size - conv_states.shape[-1], 0))
        self.has_previous_state[state_idx] = True
        self.conv_states[state_idx] = self._put(("conv", state_idx), conv_states[..., -size:])
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Keep states [rows, ...]; returns them."""
        kept = self._put(("recurrent", state_idx), recurrent_states)
        self.recurrent_states[state_idx] = kept
        return kept

    def _put(self, key: Key, states: Tensor) -> Tensor:
        """Write states to the rows of the window; returns the rows."""
        self.write_states(self._window.first, {key: states})
        rows = self._rows(key)
        assert rows is not None
        return rows

    def write_states(self, first: int, states: dict[Key, Tensor]) -> None:
        """Put states [rows, ...] into the slots from `first`."""
        for key, rows in states.items():
            if key not in self._buffers:
                self._buffers[key] = rows.new_zeros(self._slots, *rows.shape[1:])
            self._buffers[key][first : first + len(rows)] = rows

    def read_states(self, first: int, last: int) -> dict[Key, Tensor]:
        """Copies of the states in the slots first..last."""
        return {key: buffer[first:last].clone() for key, buffer in self._buffers.items()}

    def move_states(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the states of slots `sources` to slots `targets`; the two do not overlap."""
        for buffer in self._buffers.values():
            buffer[targets.to(buffer.device)] = buffer[sources.to(buffer.device)]
