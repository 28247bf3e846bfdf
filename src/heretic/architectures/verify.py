"""Check the writers that are known by name in a forward pass, and find unknown ones."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heretic.architectures.explain import Gains, LayerRun, candidates, explain, passes_on, watched
from heretic.architectures.resolver import Writer, hidden_size, known_paths, layer_list, writers_at
from heretic.architectures.table import SEVERAL_STREAMS
from heretic.errors import UnsupportedModelError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Structure:
    """The layers and residual writers of a model's decoder.

    Attributes:
        path: Path of the list of layers in the model.
        layers: The decoder layers in order.
        writers: All residual writers, layer by layer.
        discovered: Paths within a layer of writers that the table lacks, found by their outputs.
        streams: Number of residual streams that a layer carries.
    """

    path: str
    layers: tuple[nn.Module, ...]
    writers: tuple[Writer, ...]
    discovered: tuple[str, ...] = ()
    streams: int = 1

    def discoveries(self) -> tuple[str, ...]:
        """Each path in `discovered` as text, with its assumed component and number of layers."""
        return tuple(map(self._discovery, self.discovered))

    def _discovery(self, path: str) -> str:
        beginnings = {w: f"{self.path}.{w.layer}.{path}." for w in self.writers}
        own = [w for w, start in beginnings.items() if f"{w.name}.".startswith(start)]
        layers = len({writer.layer for writer in own})
        plural = "" if layers == 1 else "s"
        return f"{path} (taken for {own[0].component}, in {layers} layer{plural})"


def resolve(
    model: nn.Module, forward: Callable[[], object], by_hand: Sequence[str] = ()
) -> Structure:
    """Find the layers and residual writers, and check that the writers explain each layer's output.

    Args:
        model: The model.
        forward: Runs the model once on any text.
        by_hand: Paths within a layer that are writers too (setting `residual_writers`). With them
            only the table's writers and these are considered.

    Raises:
        FloatingPointError: A layer's output holds NaN or infinity in this dtype.
        UnsupportedModelError: What a layer adds to the stream is not the sum of its writers'
            outputs.
    """
    prefix, layers = layer_list(model)

    def watch(layer: nn.Module) -> list[str]:
        norms = [path for path, module in layer.named_modules() if passes_on(module)]
        return [*known_paths(layer, by_hand), *norms]

    calls: dict[int, tuple[Any, Any]] = {}
    with ExitStack() as stack, torch.inference_mode():
        for index, layer in enumerate(layers):
            stack.callback(_keep_call(layer, index, calls).remove)
        runs = stack.enter_context(watched(list(layers), watch, hidden_size(model)))
        forward()
    writers: list[Writer] = []
    discovered: set[str] = set()
    streams = 1
    for index, (layer, run) in enumerate(zip(layers, runs, strict=True)):
        streams = max(streams, _check_run(index, run))
        found = explain(run, known_paths(layer, by_hand))
        if found is None and not by_hand:
            found = _discovered(layer, calls[index], hidden_size(model))
            discovered |= set(found) - set(known_paths(layer)) if found else set()
        if found is None:
            raise _unexplained(index, layer, run)
        for path in (path for path, _ in layer.named_modules() if path in found):
            writers += writers_at(index, layer, f"{prefix}.{index}", path, found[path])
    return Structure(prefix, tuple(layers), tuple(writers), tuple(sorted(discovered)), streams)


def _keep_call(layer: nn.Module, index: int, calls: dict[int, tuple[Any, Any]]) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls[index] = args, kwargs

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def _check_run(index: int, run: LayerRun) -> int:
    """The number of streams that a layer carried.

    Raises:
        FloatingPointError: An output is not finite.
        UnsupportedModelError: The layer did not run.
    """
    if run.before is None or run.after is None:
        raise UnsupportedModelError(
            f"Layer {index} did not run in a forward pass on text, so it cannot be checked.",
            remedy="docs/models.md lists what can be edited.",
        )
    if not all(x.isfinite().all() for x in (run.after, *(ran.after for ran in run.ran.values()))):
        raise FloatingPointError(f"the output of layer {index} holds values that are not finite")
    return run.after.shape[1]


def _discovered(layer: nn.Module, call: tuple[Any, Any], hidden: int) -> Gains | None:
    """Find a layer's writers without the table, by running a copy of the layer in float32.

    In half precision, rounding would hide which of many modules contribute. None also if the copy
    cannot be run, as with quantised weights.
    """
    args, kwargs = call
    try:
        single = copy.deepcopy(layer).float()
        with watched([single], candidates, hidden) as runs, torch.inference_mode():
            single(*_as_float(args), **_as_float(kwargs))
    except Exception:  # a forward may fail in any way; the caller raises the error for the user
        _log.warning("A copy of %s could not be run", type(layer).__name__, exc_info=True)
        return None
    return explain(runs[0], candidates(single))


def _as_float(value: Any) -> Any:
    """Convert floating-point tensors to float32, also within tuples and dictionaries."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(map(_as_float, value))
    if isinstance(value, dict):
        return {key: _as_float(item) for key, item in value.items()}
    return value


def _unexplained(index: int, layer: nn.Module, run: LayerRun) -> UnsupportedModelError:
    assert run.after is not None
    if not run.ran:
        return UnsupportedModelError(
            f"Layers of type {type(layer).__name__} cannot be edited: {SEVERAL_STREAMS}.",
            remedy="docs/models.md lists what can be edited.",
        )
    modules = ", ".join(_linear_modules(layer, run.after.shape[-1])) or "none"
    return UnsupportedModelError(
        f"Layer {index} ({type(layer).__name__}) adds something else to the residual stream than "
        f"the sum of its known writers' outputs.",
        remedy="Nothing was edited. Name the writers in residual_writers; modules of the stream's "
        f"width: {modules}.",
    )


def _linear_modules(layer: nn.Module, hidden: int) -> Iterator[str]:
    """Paths of a layer's modules whose weight matrix has the hidden size as one dimension."""
    for path, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2 and hidden in weight.shape:
            yield path
