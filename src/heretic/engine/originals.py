"""States of the unedited model on the prompts, kept so that no plan computes them again.

Below a plan's first edited layer nothing changes: hidden states come from here, and so do keys and
values of prompts that get replies. The tokens that all prompts of a set begin with (system prompt,
head of the template) are kept as one row, not one per prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from heretic.architectures.resolver import first_tensor, layer_input
from heretic.architectures.streams import as_layer_takes, rows_first
from heretic.engine.slots import States
from heretic.engine.states import Carried
from heretic.model.endings import EncodedItem
from heretic.model.hooks import replaced


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """Token ids of a prompt set.

    Attributes:
        head: Tokens that all prompts begin with.
        tails: Remaining tokens of each prompt, at least one.
        branches: Lengths of the branches that end each tail, where there are any. Tokens of a
            branch see what comes before all branches, and their own branch.
    """

    head: Sequence[int]
    tails: Sequence[Sequence[int]]
    branches: Sequence[Sequence[int]] = ()

    @classmethod
    def split(cls, rows: Sequence[list[int]], share: bool = True) -> EncodedPrompts:
        """Find the common head; `share=False` leaves it empty."""
        first, last = min(rows), max(rows)
        shortest = min(map(len, rows))
        length = 0
        while share and length < shortest - 1 and first[length] == last[length]:
            length += 1
        return cls(head=first[:length], tails=[row[length:] for row in rows])

    @classmethod
    def of_items(cls, items: Sequence[EncodedItem], share: bool = True) -> EncodedPrompts:
        """One row for each item: its context with all endings as branches."""
        contexts = cls.split([list(item.context) for item in items], share)
        return cls(
            contexts.head,
            [item.packed[len(contexts.head) :] for item in items],
            [[len(branch) for branch in item.branches] for item in items],
        )

    def branch_out(self, row: int, within: Tensor, positions: Tensor) -> None:
        """Let the branches of a row not see each other, and count on from where they begin.

        Args:
            within: Which tokens see which, bool [width, width], aligned on the right; changed here.
            positions: int64 [width]; changed here.
        """
        lengths = self.branches[row] if self.branches else ()
        trunk = start = len(positions) - sum(lengths)
        for length in lengths:
            within[start : start + length, trunk:start] = False
            positions[start : start + length] -= start - trunk
            start += length

    @property
    def width(self) -> int:
        """Tokens of the longest tail."""
        return max(map(len, self.tails))

    @property
    def length(self) -> int:
        """Tokens of the longest prompt."""
        return len(self.head) + self.width


@dataclass(slots=True)
class Originals:
    """The unedited model's states on one prompt set.

    Attributes:
        head_inputs: Layer index to the layer's input on the head, [1, tokens, hidden]. Here and
            below it is [..., streams, hidden] for layers with several streams (`rows_first`).
        tail_inputs: The same on the tails, [prompts, width, hidden], aligned on the right.
        head_states: Keys and values of the head, one row.
        tail_states: Keys and values of the tails, in the layers below the highest of
            `tail_inputs`; empty if no replies are wanted.
        tail_carried: What these layers carry after the tails; likewise.
    """

    head_inputs: dict[int, Tensor] = field(default_factory=dict)
    tail_inputs: dict[int, Tensor] = field(default_factory=dict)
    head_states: States = field(default_factory=list)
    tail_states: States = field(default_factory=list)
    tail_carried: Carried = field(default_factory=list)

    def start(self, first_edited: int | None) -> int:
        """The highest layer at which a plan can start; None means that it edits no layer."""
        return max(
            (at for at in self.tail_inputs if first_edited is None or at <= first_edited), default=0
        )

    def keep_inputs(
        self, rows: Sequence[int], shape: tuple[int, int], inputs: Mapping[int, Tensor]
    ) -> None:
        """Store layer inputs [rows, tokens, hidden] in these rows of [prompts, width, hidden]."""
        for layer, hidden in inputs.items():
            if layer not in self.tail_inputs:
                self.tail_inputs[layer] = hidden.new_zeros(*shape, *hidden.shape[2:])
            self.tail_inputs[layer][rows, shape[1] - hidden.shape[1] :] = hidden

    def keep_states(self, rows: Sequence[int], shape: tuple[int, int], states: States) -> None:
        """Store keys and values of tails in these rows; `shape` is (prompts, width)."""
        if not self.tail_states:
            self.tail_states = [
                (index, _room_for(keys, shape), _room_for(values, shape))
                for index, keys, values in states
            ]
        for (_, *kept), (_, *new) in zip(self.tail_states, states, strict=True):
            for whole, part in zip(kept, new, strict=True):
                whole[rows, :, shape[1] - part.shape[2] :] = part

    def keep_carried(self, rows: Sequence[int], prompts: int, carried: Carried) -> None:
        """Store carried states in these rows of so many prompts."""
        if not self.tail_carried:
            self.tail_carried = [
                (index, {key: x.new_zeros(prompts, *x.shape[1:]) for key, x in states.items()})
                for index, states in carried
            ]
        for (_, kept), (_, new) in zip(self.tail_carried, carried, strict=True):
            for key, states in new.items():
                kept[key][list(rows)] = states

    def carried_below(self, start: int, rows: Sequence[int]) -> Carried:
        """What the layers below `start` carry after these rows."""
        return [
            (index, {key: kept[list(rows)] for key, kept in states.items()})
            for index, states in self.tail_carried
            if index < start
        ]

    def states_below(self, start: int, rows: Sequence[int], width: int) -> States:
        """Keys and values of the last `width` tokens of these rows, in the layers below `start`."""
        rows = list(rows)
        return [
            (index, keys[rows, :, -width:], values[rows, :, -width:])
            for index, keys, values in self.tail_states
            if index < start
        ]


def _room_for(states: Tensor, shape: tuple[int, int]) -> Tensor:
    return states.new_zeros(shape[0], states.shape[1], shape[1], states.shape[3])


def checkpoint_layers(layers: int, budget: float, inputs: int, states: int) -> list[int]:
    """Evenly spaced layers whose inputs are worth keeping, as many as fit.

    Args:
        budget: Bytes to spend.
        inputs: Bytes of one layer's inputs on all prompts.
        states: Bytes of what one layer keeps of the prompts that get replies; it is kept of every
            layer below the highest checkpoint.
    """
    best: list[int] = []
    for count in range(1, layers):
        chosen = sorted({round(layers * (i + 1) / (count + 1)) for i in range(count)})
        if len(chosen) * inputs + chosen[-1] * states > budget:
            break
        best = chosen
    return best


@contextmanager
def recorded(layers: Sequence[nn.Module], wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Record the inputs of the wanted layers, by index, in the context's latest forward pass."""
    inputs: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs[index] = rows_first(module, layer_input(args, kwargs))

        return hook

    with ExitStack() as stack:
        for index in wanted:
            handle = layers[index].register_forward_pre_hook(keep(index), with_kwargs=True)
            stack.callback(handle.remove)
        yield inputs


@contextmanager
def output_lengths(layers: Sequence[nn.Module]) -> Iterator[dict[int, int]]:
    """Record the length of each layer's output tuple, 0 for a tensor, in the context's passes."""
    lengths: dict[int, int] = {}

    def note(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first_tensor(output)
            lengths[index] = len(output) if isinstance(output, tuple) else 0

        return hook

    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(note(index)).remove)
        yield lengths


@contextmanager
def starting_at(
    layers: Sequence[nn.Module], start: int, hidden: Tensor, lengths: Mapping[int, int]
) -> Iterator[None]:
    """Skip the layers before `start` and give that layer `hidden` as its input.

    Args:
        hidden: The layer's input, from `recorded`.
        lengths: From `output_lengths`, so that a skipped layer returns what its caller expects.
    """
    hidden = as_layer_takes(layers[start], hidden)

    def stand_in(index: int) -> Callable[..., Any]:
        parts = lengths[index]
        return lambda *args, **kwargs: (hidden, *[None] * (parts - 1)) if parts else hidden

    with ExitStack() as stack:
        for index in range(start):
            stack.enter_context(replaced(layers[index], stand_in(index)))
        yield
