"""Whole edited weights, written from memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from heretic.errors import ExportError, HereticError
from heretic.events import Notice, Reporter
from heretic.export.documents.write import base_revision
from heretic.export.safetensors.checkpoint import FLOATS, read_checkpoint
from heretic.export.safetensors.packed import unpacked
from heretic.records.plan import Plan
from heretic.system.hub import base_folder

if TYPE_CHECKING:
    from torch import Tensor

    from heretic.model.core import Model


def estimated_bytes(model: Model) -> int:
    """Disk space that the merged weights take, in bytes.

    Tied parameters count once, as safetensors stores them. Quantised parameters are saved
    unquantised, in the dtype of the base's files or at two bytes for each value.
    """
    quantised = model.options.quantization != "none"
    stored = stored_dtype(model)
    width = None if stored is None else getattr(torch, stored).itemsize
    total = 0
    for parameter in model.model.parameters():
        size = width or parameter.element_size()
        if quantised and not parameter.is_floating_point():
            packed = 2 if model.options.quantization == "bnb_4bit" else 1
            total += parameter.numel() * packed * (width or 2)
        else:
            total += parameter.numel() * size
    return total


def write_merged(
    model: Model, plan: Plan, directions: Tensor, folder: Path, max_shard_size: str | int
) -> None:
    """Write edited weights as safetensors, and the configuration; `model` is unedited afterwards.

    Args:
        directions: float32 [layers + 1, hidden] or [layers + 1, k, hidden].
        max_shard_size: Largest weight file, e.g. `5GB`.

    Raises:
        ExportError: The model is edited already, so the plan would be applied twice.
    """
    if model.is_edited:
        raise ExportError(
            "The model in memory is edited already.", remedy="Call restore() before saving a plan."
        )
    from heretic.model.loading import quiet

    try:
        model.apply(plan, directions)
        with _valid_generation_config(model.model), quiet():
            model.model.save_pretrained(folder, max_shard_size=max_shard_size)
    finally:
        model.restore()


@contextmanager
def _valid_generation_config(model: Any) -> Iterator[None]:
    """Make a generation configuration writable that sets a temperature without `do_sample`.

    Many published models have such a file. transformers reads it, but refuses to write it.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        yield
        return
    sampled = config.do_sample
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
    try:
        yield
    finally:
        config.do_sample = sampled


@contextmanager
def as_stored(model: Model, reporter: Reporter) -> Iterator[Model]:
    """The model itself, or a copy of it if it was loaded quantised or in another dtype than stored.

    Raises:
        ExportError: It was loaded quantised, and its full-precision weights cannot be loaded.
    """
    quantised = model.options.quantization != "none"
    here = _name(model.dtype)
    sizes = _stored_sizes(model)
    stored = _most_of(sizes) or here
    if not quantised:
        _say_mixed(sizes, stored, reporter)
    if not quantised and stored == here:
        yield model
        return
    from heretic.model.core import Model as Loader

    dtypes = model.options.dtypes if quantised and stored == here else (stored,)
    try:
        full = Loader(replace(model.options, quantization="none", dtypes=dtypes), reporter)
    except HereticError as error:
        if quantised:
            raise ExportError(
                f"Merging needs the unquantised model, which could not be loaded: {error.message}",
                remedy="Export an adapter instead (--export-strategy adapter).",
            ) from error
        reporter.emit(
            Notice(
                f"The weights are saved as {here}, since the base could not be loaded as {stored}, "
                f"as it is stored: {error.message}",
                "warning",
            )
        )
        full = model
    yield full


def stored_dtype(model: Model) -> str | None:
    """The dtype of most weights in the base's files, e.g. `float32`.

    Packed weights do not count. None if the files cannot be read, or are not on this machine.
    """
    return _most_of(_stored_sizes(model))


def _stored_sizes(model: Model) -> Counter[torch.dtype | str]:
    """The number of values of each dtype in the base's files; empty if these cannot be read."""
    sizes: Counter[torch.dtype | str] = Counter()
    base = base_folder(model.options.model, base_revision(model))
    if base is None:
        return sizes
    try:
        source = read_checkpoint(base)
        if source is not None:
            source = unpacked(source, model.options.model)
            for entry in source.tensors.values():
                if entry.key in source.packed:
                    continue  # saved in the dtype of those that are not packed
                sizes[FLOATS.get(entry.dtype, entry.dtype)] += math.prod(entry.shape)
        else:
            for file in sorted(base.glob("pytorch_model*.bin")):
                # Names and shapes alone; it loaded already, with the user's consent to pickles.
                tensors = torch.load(file, map_location="meta", weights_only=True)
                for tensor in tensors.values():
                    sizes[tensor.dtype] += tensor.numel()
    except Exception:  # unreadable in any way: the dtype of the search is used
        return Counter()
    return sizes


def _most_of(sizes: Counter[torch.dtype | str]) -> str | None:
    most = max(sizes, key=sizes.__getitem__, default=None)
    known = isinstance(most, torch.dtype) and most in FLOATS.values()
    return _name(most) if known else None


def _say_mixed(sizes: Counter[torch.dtype | str], saved: str, reporter: Reporter) -> None:
    """Say that weights which the base stores in another dtype are rounded to the one of most."""
    floats = [_name(dtype) for dtype in sizes if dtype in FLOATS.values()]
    others = sorted(name for name in floats if name != saved)
    if others:
        reporter.emit(
            Notice(
                f"The base's files hold some weights in {' and '.join(others)}; saved from memory, "
                f"all are {saved}",
                "warning",
            )
        )


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def is_full_precision(model: Model, parameters: Iterable[str]) -> bool:
    """Whether parameters in memory are unquantised floating-point numbers of at least 16 bits."""
    state = model.model.state_dict()
    return all(
        state[name].is_floating_point() and state[name].element_size() > 1 for name in parameters
    )
