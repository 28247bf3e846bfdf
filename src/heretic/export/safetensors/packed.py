"""Packed weights in a checkpoint: shown as they would be unquantised, and packed again when edited.

The tensors of a packed weight keep their places, shapes and dtypes in the files, so that an edited
one is written over the copy of the old one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from heretic.errors import ExportError
from heretic.export.safetensors.checkpoint import FLOATS, Checkpoint, Entry, Progress
from heretic.quantised.kinds import quantisation_of
from heretic.quantised.weights import Packed, Writing, contents
from heretic.system.documents import read_json

DTYPES = {
    **FLOATS,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""Dtypes of the tensors of packed weights, as safetensors names them."""

WIDE, UNWRITABLE = "F32", "packed"
"""In place of a dtype: of a packed weight as it is edited, and of one that cannot be packed."""


def unpacked(checkpoint: Checkpoint, model: str) -> Checkpoint:
    """The checkpoint with its packed weights under the names and shapes they have unquantised.

    One that is not quantised, or whose format only transformers reads, is returned unchanged.

    Args:
        model: The model's name in messages.

    Raises:
        ModelError: It is quantised in a way that is not known; see `quantised.weights.contents`.
    """
    file = checkpoint.folder / "config.json"
    config = read_json(file, kind=ExportError, strict=False) if file.is_file() else None
    found = quantisation_of(config, model) if isinstance(config, dict) else None
    if found is None or not found.is_read_here:
        return checkpoint
    held = contents(checkpoint.tensors, found, read, model)
    shown = {name: _shown(packed) for name, packed in held.packed.items()}
    return replace(checkpoint, tensors={**held.plain, **shown}, packed=held.packed)


def _shown(packed: Packed[Entry]) -> Entry:
    lead = next(iter(packed.parts.values()))
    dtype = WIDE if packed.codec.writes else UNWRITABLE
    return Entry(packed.name, lead.file, dtype, packed.shape, lead.start, lead.end)


def read(entry: Entry) -> Tensor:
    """A tensor of a file, in its dtype.

    Raises:
        ExportError: Its dtype is not known, or the file ends early.
    """
    if entry.dtype not in DTYPES:
        raise ExportError(
            f"{entry.key} in {entry.file} has the dtype {entry.dtype}, which cannot be read.",
            remedy="Name the unquantised model.",
        )
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        data = bytearray(file.read(entry.end - entry.start))
    dtype = DTYPES[entry.dtype]
    if len(data) != math.prod(entry.shape) * dtype.itemsize:
        raise ExportError(
            f"{entry.file} ends within {entry.key}.", remedy="Download the model again."
        )
    if not data:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(entry.shape)


def rewrite(
    checkpoint: Checkpoint,
    edits: Mapping[str, Callable[[Tensor], None]],
    folder: Path,
    progress: Progress,
) -> tuple[int, float]:
    """Edit packed weights in a copy of the checkpoint's files, and pack them anew.

    Args:
        edits: A function for each packed weight, which edits a matrix, float32 [d_out, d_in], in
            place. It is called for each expert where a weight holds several.
        folder: Where the files were copied to.

    Returns:
        The number of weights, and the root mean square of what packing has changed, relative to
        that of the edited weights.

    Raises:
        ExportError: A packed weight is not what was to be packed.
    """
    lost = size = 0.0
    for name, edit in edits.items():
        packed = checkpoint.packed[name]
        codec = cast("Writing", packed.codec)
        before = {part: read(entry) for part, entry in packed.parts.items()}
        weight = codec.decode(before)
        for matrix in weight if weight.dim() == 3 else (weight,):
            edit(matrix)
        after = codec.encode(weight, before)
        error = (codec.decode({**before, **after}) - weight).square().sum().item()
        total = weight.square().sum().item()
        if not error <= total:
            raise ExportError(
                f"{name} cannot be packed anew: what is read back is not the edited weight.",
                remedy="Export an adapter instead (--export-strategy adapter), and report this.",
            )
        lost, size = lost + error, size + total
        for part, tensor in after.items():
            _overwrite(packed.parts[part], tensor, checkpoint.folder, folder)
        progress(sum(entry.end - entry.start for entry in packed.parts.values()))
    return len(edits), math.sqrt(lost / size) if size else 0.0


def packed_bytes(checkpoint: Checkpoint, names: Mapping[str, object]) -> int:
    """Bytes of packed weights in the files."""
    parts = [entry for name in names for entry in checkpoint.packed[name].parts.values()]
    return sum(entry.end - entry.start for entry in parts)


def _overwrite(entry: Entry, tensor: Tensor, source: Path, folder: Path) -> None:
    """Write a tensor in the place that it has in the base's file.

    Raises:
        ExportError: It is not of the same size.
    """
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if tensor.dtype != DTYPES[entry.dtype] or len(data) != entry.end - entry.start:
        raise ExportError(f"{entry.key} would not fit into its place in {entry.file}.")
    with (folder / entry.file.relative_to(source)).open("r+b") as file:
        file.seek(entry.start)
        file.write(data)
