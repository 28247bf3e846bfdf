"""Find the checkpoint tensors that a model's parameters were loaded from.

Names in a checkpoint often differ from those in memory: transformers renames, adds or drops the
base model's prefix, stacks experts and transposes while it loads. Names go through the same
mapping that it loads with, so every tensor that it can load is found here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heretic.errors import ExportError

if TYPE_CHECKING:
    from heretic.export.safetensors.checkpoint import Checkpoint

QUANTISED_PARTS = ("qweight", "packed", "blocks", "absmax", "W_q", "scale", "scales", "scale_inv")
"""Endings of the names of tensors that hold quantised weights, or values that belong to them."""


class StreamError(ExportError):
    """A writer's tensors cannot be edited in the checkpoint's own files."""


class QuantisedSourceError(StreamError):
    """A writer's tensors are quantised in the checkpoint."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor that was loaded into a parameter, as the whole of it or as one expert.

    Attributes:
        key: Its name in the checkpoint.
        transposed: Whether its last two dimensions are swapped in the parameter.
    """

    key: str
    transposed: bool = False


def find_sources(
    model: Any, checkpoint: Checkpoint, parameters: Iterable[str]
) -> dict[str, tuple[Source, ...]]:
    """Find the checkpoint tensors of parameters.

    Args:
        model: The transformers model in memory.
        parameters: Names in `model.state_dict()`.

    Returns:
        All tensors of each parameter, by its name: one, or one for each expert.

    Raises:
        QuantisedSourceError: A tensor is quantised in the checkpoint.
        StreamError: A parameter has no tensor in the checkpoint, or is made from its tensors in a
            way that cannot be reversed here.
    """
    wanted = list(parameters)
    state = model.state_dict()
    origins = _origins(model, state, checkpoint)
    sources = {}
    for name in wanted:
        found = origins.get(name, [])
        if not found:
            raise _missing(name, checkpoint)
        for key, _ in found:
            if not is_full_precision(checkpoint, key):
                raise quantised(checkpoint, key)
        sources[name] = _checked(name, found, state.get(name), checkpoint)
    return sources


def is_full_precision(checkpoint: Checkpoint, key: str) -> bool:
    """Whether a tensor holds unquantised floating-point numbers of at least 16 bits."""
    from heretic.export.safetensors.checkpoint import FLOATS

    return checkpoint.tensors[key].dtype in FLOATS


def quantised(checkpoint: Checkpoint, name: str) -> QuantisedSourceError:
    """The error for a tensor that is quantised in the checkpoint."""
    kind = checkpoint.quantization
    entry = checkpoint.tensors.get(name)
    kinds = [kind] if kind else []
    kinds += [f"stored as {entry.dtype}"] if entry else []
    return QuantisedSourceError(
        f"{name} is quantised in {checkpoint.folder} ({', '.join(kinds) or 'packed'}), and an "
        "edited weight cannot be stored that way.",
        remedy="Name the unquantised base as the model (quantization = 'bnb_4bit' still loads it "
        "in little memory), or export an adapter (--export-strategy adapter).",
    )


def _origins(
    model: Any, state: dict[str, Any], checkpoint: Checkpoint
) -> dict[str, list[tuple[str, Any]]]:
    """(tensor, conversion or None) of all tensors loaded into each parameter, by its name.

    Names are taken in the order in which transformers loads them, since some renamings and the
    order of experts depend on it.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    prefix = model.base_model_prefix
    origins: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for key in sorted(checkpoint.tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:  # it has its name in memory already
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name in state:
            origins[name].append((key, None if pattern is None else by_pattern[pattern]))
    return origins


def _checked(
    name: str, found: list[tuple[str, Any]], parameter: Any, checkpoint: Checkpoint
) -> tuple[Source, ...]:
    """The sources of a parameter, checked to make up the whole of it.

    Raises:
        StreamError: They do not, or their conversion cannot be reversed here.
    """
    converter = found[0][1]
    if any(other is not converter for _, other in found):
        raise _unclear(name, "some of its tensors are converted and some are not")
    shapes = {checkpoint.tensors[key].shape for key, _ in found}
    if len(shapes) > 1:
        raise _unclear(name, "its tensors differ in shape")
    shape, whole = shapes.pop(), tuple(parameter.shape)
    transposed = False
    if converter is not None:
        if len(converter.source_patterns) > 1 or len(converter.target_patterns) > 1:
            raise _unclear(name, "several parameters share its tensors")
        for operation in converter.operations:
            converted = _converted(operation, shape, len(found), whole)
            if converted is None:
                raise _unclear(name, f"it is converted by {operation}")
            transposed ^= len(converted) == len(shape) and converted is not shape
            shape = converted
    if shape != whole and parameter.is_floating_point():  # bitsandbytes packs what it quantises
        raise _unclear(name, f"its tensors give the shape {list(shape)} instead of {list(whole)}")
    return tuple(Source(key, transposed) for key, _ in found)


def _converted(
    operation: Any, shape: tuple[int, ...], count: int, whole: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The shape after an operation that stacks `count` tensors or swaps their last two dimensions.

    The same object if the operation changes nothing; None for any other operation.
    """
    kind, dimensions = type(operation).__name__, len(shape)
    if kind == "MergeModulelist" and operation.dim == 0:
        return (count, *shape)
    if kind == "Transpose" and dimensions > 1:
        if operation.check_dims and shape == whole:
            return shape
        swapped = {operation.dim0 % dimensions, operation.dim1 % dimensions}
        if swapped == {dimensions - 2, dimensions - 1}:
            return (*shape[:-2], shape[-1], shape[-2])
    return None


def _missing(name: str, checkpoint: Checkpoint) -> StreamError:
    module = name.removesuffix(".weight")
    parts = [key for key in checkpoint.tensors if key.startswith(module)]
    if checkpoint.quantization or any(key.endswith(QUANTISED_PARTS) for key in parts):
        return quantised(checkpoint, name)
    return _unclear(name, "no tensor in them belongs to it")


def _unclear(name: str, reason: str) -> StreamError:
    return StreamError(
        f"{name} cannot be edited in the checkpoint's own files: {reason}.",
        remedy="Export an adapter instead (--export-strategy adapter).",
    )
