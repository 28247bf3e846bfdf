"""Loads a checkpoint whose weights are packed as an ordinary model, one tensor after the other.

transformers is given the unpacked weights under the names that they would have unquantised, and
loads them like those of any other checkpoint: renamed, stacked, on several devices. Each is read
from the files when its turn comes, so that memory holds the model and a few matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig

from heretic.errors import ModelError, SettingsError
from heretic.model.completeness import read_weights
from heretic.model.files import weight_files
from heretic.model.source import ModelSource
from heretic.quantised.kinds import Quantisation, quantisation_of
from heretic.quantised.weights import Contents, Packed, contents
from heretic.system.hub import base_folder, is_local

GIGABYTE, MEGABYTE = 10**9, 10**6

DOWNLOADED = ["model*.safetensors", "model.safetensors.index.json"]
"""Weight files of a model on the Hub, without copies in other formats that lie beside them."""

FP8_CAPABILITY = (8, 9)
"""The CUDA capability from which a GPU multiplies FP8."""


@dataclass(frozen=True, slots=True)
class _Slice:
    """A tensor in an open file, which is read when it is indexed."""

    source: Any
    dtype: str
    shape: tuple[int, ...]

    def __getitem__(self, index: Any) -> Tensor:
        found: Tensor = self.source[index]
        return found


@dataclass(frozen=True, slots=True)
class _Unpacked:
    """A packed weight in open files, which is unpacked when it is indexed."""

    packed: Packed[_Slice]

    def __getitem__(self, index: Any) -> Tensor:
        parts = {name: part[...] for name, part in self.packed.parts.items()}
        return self.packed.codec.decode(parts)[index]


def quantisation_in(config: Any, model: str) -> Quantisation | None:
    """What a transformers configuration says of the weights' quantisation.

    Raises:
        ModelError: It is not known here.
    """
    text = getattr(config, "text_config", None)
    settings = [getattr(place, "quantization_config", None) for place in (config, text)]
    plain = {
        "quantization_config": settings[0],
        "text_config": {"quantization_config": settings[1]},
    }
    return quantisation_of(plain, model)


def check_not_twice(quantisation: Quantisation | None, model: str, setting: str) -> None:
    """Refuse to quantise what is quantised.

    Args:
        setting: The setting `quantization`.

    Raises:
        SettingsError: Both are.
    """
    if quantisation is not None and setting != "none":
        raise SettingsError(
            f"{model} is quantised already ({quantisation.label}); quantization is {setting}.",
            remedy="Set quantization to none, or give the unquantised model.",
        )


def stays_packed(quantisation: Quantisation) -> bool:
    """Whether transformers runs the weights as they are packed: FP8 on a GPU with its kernels."""
    if quantisation.method != "fp8" or not torch.cuda.is_available():
        return False
    if torch.cuda.get_device_capability() < FP8_CAPABILITY:
        return False
    try:
        from transformers.integrations.finegrained_fp8 import load_finegrained_fp8_kernel

        load_finegrained_fp8_kernel()
    except Exception:  # the package or the kernel is missing, or not for this version of PyTorch
        return False
    return True


def is_unpacked(quantisation: Quantisation) -> bool:
    """Whether the weights are unpacked while they are loaded."""
    return quantisation.is_read_here and not stays_packed(quantisation)


def told_before(source: ModelSource, quantisation: Quantisation, dtype: torch.dtype | str) -> str:
    """What is done with packed weights, and what memory they take, before they are read.

    Args:
        dtype: In which the weights are loaded; `auto` for half precision.

    Raises:
        ModelError: See `contents`, or the files cannot be had.
    """
    if not is_unpacked(quantisation):
        return f"{source.model}: {quantisation.told(packed=True)}"
    itemsize = dtype.itemsize if isinstance(dtype, torch.dtype) else 2
    name = "half precision" if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    files = _files(source)
    with _opened(files, quantisation, source.model) as found:
        shapes = [weight.shape for weight in found.packed.values()]
        shapes += [tensor.shape for tensor in found.plain.values()]
    count = sum(map(math.prod, shapes))
    held = sum(file.stat().st_size for file in files)
    return (
        f"{source.model}: {quantisation.told()} In memory its weights take "
        f"{_size(count * itemsize)} ({name}); its files have {_size(held)}."
    )


def _size(count: int) -> str:
    return f"{count / GIGABYTE:.3g} GB" if count > GIGABYTE else f"{count / MEGABYTE:.3g} MB"


def load_unpacked(
    source: ModelSource, quantisation: Quantisation, skeleton: Any, arguments: Mapping[str, Any]
) -> tuple[Any, tuple[str, ...]]:
    """Load a checkpoint with packed weights as an ordinary model.

    Args:
        skeleton: The model without weights, from its configuration.
        arguments: Those of `from_pretrained`, without the place.

    Returns:
        The model, and the names of tensors in the files that belong to nothing in it.

    Raises:
        ModelError: See `contents` and `read_weights`, or the files cannot be had.
    """
    config = skeleton.config
    for place in (config, getattr(config, "text_config", None)):
        if place is not None:
            place.__dict__.pop("quantization_config", None)
    given = {**arguments, "config": config}
    for name in ("revision", "trust_remote_code"):
        given.pop(name, None)
    if given.get("dtype") == "auto":
        given["dtype"] = getattr(config, "dtype", None) or torch.bfloat16
    generation = given.pop("generation_config", None) or _generation(source)
    if generation is not None:
        given["generation_config"] = generation
    with _opened(_files(source), quantisation, source.model) as found:
        state = {**found.plain, **{name: _Unpacked(p) for name, p in found.packed.items()}}
        given["state_dict"] = state
        model, unread = read_weights(type(skeleton), None, source.model, given)
    model.config._name_or_path = source.model  # noqa: SLF001  (as transformers sets it)
    return model, unread


def _generation(source: ModelSource) -> Any:
    try:
        return GenerationConfig.from_pretrained(
            source.model, revision=source.model_commit or "main"
        )
    except OSError:  # the model has none
        return None


def _files(source: ModelSource) -> list[Path]:
    """The weight files, downloaded if need be.

    Raises:
        ModelError: There are none in safetensors format.
    """
    folder = base_folder(source.model, source.model_commit)
    if not is_local(source.model):
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(source.model, revision=source.model_commit, allow_patterns=DOWNLOADED)
        )
    files = [] if folder is None else weight_files(folder)
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise ModelError(
            f"{source.model} is quantised, and its weights are not in safetensors files.",
            remedy="Name the unquantised model, or one with safetensors files.",
        )
    return files


@contextmanager
def _opened(
    files: list[Path], quantisation: Quantisation, model: str
) -> Iterator[Contents[_Slice]]:
    """The contents of weight files, which stay open while the context lasts."""
    tensors: dict[str, _Slice] = {}
    with ExitStack() as stack:
        for file in files:
            reader = stack.enter_context(safe_open(file, framework="pt"))
            for name in reader.keys():  # noqa: SIM118  (no mapping)
                piece = reader.get_slice(name)
                tensors[name] = _Slice(piece, piece.get_dtype(), tuple(piece.get_shape()))
        yield contents(tensors, quantisation, lambda part: part[...], model)
