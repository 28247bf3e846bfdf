"""Packed weights in a checkpoint: shown as they would be unquantised, and packed again when edited.

The tensors of a packed weight keep their places, shapes and dtypes in the files, so that an edited
one is written over the copy of the old one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
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

ROUNDS, MISSING = 16, 0.05
"""Most times that a weight is rounded, and the share of an edit that may be missing afterwards."""

ITERATIONS = 4
"""Steps of the subspace iteration, which starts close to its end."""

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


@dataclass(frozen=True, slots=True)
class PackedEdit:
    """The edit of a packed weight.

    Attributes:
        apply: Edits a matrix, float32 [d_out, d_in], in place.
        rank: Number of directions along which it changes what the matrix writes.
        transposed: Whether the matrix is [d_in, d_out] instead.
    """

    apply: Callable[[Tensor], None]
    rank: int
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Rounded:
    """What packing edited weights anew has changed.

    Attributes:
        weights: Number of packed weights.
        relative: Root mean square of the change, relative to that of the edited weights.
        missing: What is missing of the edits along their directions, as a share of them.
    """

    weights: int
    relative: float = 0.0
    missing: float = 0.0


def rewrite(
    checkpoint: Checkpoint,
    edits: Mapping[str, PackedEdit],
    folder: Path,
    progress: Progress,
) -> Rounded:
    """Edit packed weights in a copy of the checkpoint's files, and pack them anew.

    Args:
        edits: By the name of the packed weight; applied to each expert where it holds several.
        folder: Where the files were copied to.

    Raises:
        ExportError: A packed weight is not what was to be packed.
    """
    lost = size = missing = wanted = 0.0
    for name, edit in edits.items():
        packed = checkpoint.packed[name]
        codec = cast("Writing", packed.codec)
        before = {part: read(entry) for part, entry in packed.parts.items()}
        original = codec.decode(before)
        weight = original.clone()
        for matrix in weight if weight.dim() == 3 else (weight,):
            edit.apply(matrix)
        after, left, along = packed_with_edit(codec, original, weight, before, edit)
        error = left.square().sum().item()
        missing, wanted = missing + along[0] ** 2, wanted + along[1] ** 2
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
    if not edits:
        return Rounded(0)
    return Rounded(
        len(edits),
        math.sqrt(lost / size) if size else 0.0,
        math.sqrt(missing / wanted) if wanted else 0.0,
    )


def packed_with_edit(
    codec: Writing, original: Tensor, weight: Tensor, before: Mapping[str, Tensor], edit: PackedEdit
) -> tuple[dict[str, Tensor], Tensor, tuple[float, float]]:
    """Pack an edited weight so that the edit outlasts the rounding.

    The original lies on the format's levels, and an edit spreads over all numbers of a matrix: most
    change by less than half a step, and the nearest level is the one they had. Rounding each to the
    nearest would undo the edit. Therefore what is missing along the edit's directions after
    rounding is added to the weight before it is rounded again, until little is missing.

    Args:
        original, weight: Before and after the edit, float32 [..., d_out, d_in].
        before: The parts of the original.

    Returns:
        The parts; what is read back less the edited weight; and the norms of what is missing along
        the edit's directions, and of the edit there.
    """
    turned = edit.transposed
    change = (weight - original).mT if turned else weight - original
    basis = _directions(change, edit.rank)
    wanted, target = float((basis.mT @ change).norm()), weight.clone()
    tried: list[tuple[float, dict[str, Tensor], Tensor]] = []
    for _ in range(ROUNDS):
        after = codec.encode(target, before)
        left = codec.decode({**before, **after}) - weight
        along = basis.mT @ (left.mT if turned else left)
        missing = float(along.norm())
        tried = sorted([*tried, (missing, after, left)], key=itemgetter(0))[:1]
        if missing <= MISSING * wanted:
            break
        further = basis @ along
        target -= further.mT if turned else further
    missing, after, left = tried[0]
    return after, left, (missing, wanted)


def _directions(change: Tensor, rank: int) -> Tensor:
    """Orthonormal directions in which matrices [..., d_out, d_in] change most, [..., d_out, rank].

    By subspace iteration from the largest columns, without random numbers.
    """
    columns = change.norm(dim=-2).topk(min(rank, change.shape[-1]), dim=-1).indices
    start = change.gather(-1, columns.unsqueeze(-2).expand(*change.shape[:-1], -1))
    for _ in range(ITERATIONS):
        start, _ = torch.linalg.qr(start)
        start = change @ (change.mT @ start)
    found: Tensor = torch.linalg.qr(start)[0]
    return found


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
