"""Whole edited weights, tokenizer and everything else a model folder needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.errors import ExportError, HereticError
from heretic.records.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from heretic.events import Reporter
    from heretic.model.core import Model

LICENCE_PATTERNS = ("LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*")
LARGEST_LICENCE = 2**20
"""Bytes; anything larger under such a name is something else."""


def estimated_bytes(model: Model) -> int:
    """Disk space that the merged weights take, in bytes.

    Tied parameters count once, as safetensors stores them. Quantised parameters are saved
    unquantised, at two bytes for each value.
    """
    quantised = model.options.quantization != "none"
    total = 0
    for parameter in model.model.parameters():
        size = parameter.element_size()
        if quantised and not parameter.is_floating_point():
            packed = 2 if model.options.quantization == "bnb_4bit" else 1
            total += parameter.numel() * packed * 2
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
def unquantised(model: Model, reporter: Reporter) -> Iterator[Model]:
    """The model itself, or a full-precision copy of it if it was loaded quantised."""
    if model.options.quantization == "none":
        yield model
        return
    from heretic.model.core import Model as Loader

    try:
        full = Loader(replace(model.options, quantization="none"), reporter)
    except HereticError as error:
        raise ExportError(
            f"Merging needs the unquantised model, which could not be loaded: {error.message}",
            remedy="Export an adapter instead (--export-strategy adapter).",
        ) from error
    yield full


def is_full_precision(model: Model, parameters: Iterable[str]) -> bool:
    """Whether parameters in memory are unquantised floating-point numbers of at least 16 bits."""
    state = model.model.state_dict()
    return all(
        state[name].is_floating_point() and state[name].element_size() > 1 for name in parameters
    )


def write_tokenizer(model: Model, folder: Path) -> None:
    """Write the base model's own tokenizer, and its processor if there is one.

    Heretic changes the tokenizer in memory: it pads on the left and may have a new pad token.
    Therefore it is read again.
    """
    from transformers import AutoTokenizer

    from heretic.model.source import origin

    place, arguments = origin(model.options)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **arguments)
    except (OSError, ValueError):  # no longer on the disk or the Hub
        tokenizer = model.tokenizer
    tokenizer.save_pretrained(folder)
    write_processor(model, folder)


def write_processor(model: Model, folder: Path) -> None:
    """Write the processor of a multimodal model; other models have none."""
    if model.processor is not None:
        model.processor.save_pretrained(folder)


def write_generation_config(model: Model, folder: Path) -> None:
    """Write `generation_config.json` alone, for an adapter."""
    config = getattr(model.model, "generation_config", None)
    if config is not None:
        with _valid_generation_config(model.model):
            config.save_pretrained(folder)


def copy_licence(base: Path | None, folder: Path) -> list[str]:
    """Copy the base model's licence files; returns their names.

    Args:
        base: Folder of the base model's files, if there is one on this machine.
    """
    if base is None:
        return []
    found = {path for pattern in LICENCE_PATTERNS for path in base.glob(pattern)}
    copied = []
    for path in sorted(found):
        if path.is_file() and path.stat().st_size <= LARGEST_LICENCE:
            shutil.copyfile(path, folder / path.name)
            copied.append(path.name)
    return copied
