"""Write the edited model from the base's files, without the model in memory.

The base's weight files are copied shard by shard; only the tensors of residual writers that the
plan edits are read, edited in float32 and written back in their own dtype, one matrix at a time.
Everything else stays as it is, to the byte: dtypes, shards, tensors that transformers does not
load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heretic.events import Reporter, StageProgress
from heretic.export.documents.write import base_revision
from heretic.export.files import write_text
from heretic.export.safetensors import checkpoint as format_
from heretic.export.safetensors.checkpoint import Checkpoint, Entry, Scratch
from heretic.export.safetensors.packed import PackedEdit, Rounded, packed_bytes, rewrite, unpacked
from heretic.export.safetensors.sources import StreamError, find_sources
from heretic.method.edits import Ablation, Vectors, make_ablation, make_fitted
from heretic.records.plan import Plan, RowNormalization
from heretic.system.hub import base_folder

if TYPE_CHECKING:
    from heretic.model.core import Model

MEGABYTE = 10**6

TOLD = 32 * 10**6
"""Bytes between reports of progress."""


@dataclass(frozen=True, slots=True)
class Edit:
    """The edit of a matrix that writes to the residual stream, independent of its name.

    Attributes:
        basis: Orthonormal directions, [k, d_out], or the vectors of a fit.
        ablation_weights: One weight for each of the k directions.
        gains: Gains of the norm that follows the writer, [d_out]; None if no norm follows.
    """

    basis: Tensor | Vectors
    ablation_weights: tuple[float, ...]
    row_normalization: RowNormalization
    gains: Tensor | None = None

    @property
    def width(self) -> int:
        """d_out."""
        return (self.basis.read if isinstance(self.basis, Vectors) else self.basis).shape[-1]

    def ablation(self, weight: Tensor) -> Ablation:
        """The edit of a weight [d_out, d_in], without ablation weights."""
        if isinstance(self.basis, Vectors):
            return make_fitted(weight, self.basis, self.row_normalization)
        return make_ablation(weight, self.basis, self.row_normalization, gains=self.gains)


@dataclass(frozen=True, slots=True)
class ParameterEdit:
    """The edit of a parameter in memory.

    Attributes:
        name: Its key in the model's state dict, e.g. `model.layers.0.mlp.down_proj.weight`.
        transposed: Whether it is stored as [..., d_in, d_out].
        bias: Name of the experts' biases [experts, d_out]; None if they are not edited.
        stacked: Number of experts if the rows of all of them form one matrix,
            [experts * d_in, d_out]; otherwise 0.
    """

    name: str
    edit: Edit
    transposed: bool = False
    bias: str | None = None
    stacked: int = 0


@dataclass(frozen=True, slots=True)
class TensorEdit:
    """The edit of a tensor in a checkpoint.

    Attributes:
        key: Its name in the checkpoint. The shape is [d_out, d_in] or [experts, d_out, d_in].
        transposed: Whether the last two dimensions are swapped, [..., d_in, d_out].
        is_bias: Whether it is a bias instead, [d_out] or [experts, d_out].
        stacked: Number of experts in one matrix, as in `ParameterEdit`.
    """

    key: str
    edit: Edit
    transposed: bool = False
    is_bias: bool = False
    stacked: int = 0

    def apply(self, stored: Tensor, scratch: Scratch) -> None:
        """Edit one matrix, or the biases, in place.

        The result is computed in float32 as in the search (in float64 for a float64 tensor), and
        rounded once.
        """
        precise = _precise(stored, scratch)
        if self.is_bias:
            stored.copy_(edited_bias(precise, self.edit))
            return
        edit_weight(precise.T if self.transposed else precise, self.edit)
        if precise is not stored:
            stored.copy_(precise)


def _precise(stored: Tensor, scratch: Scratch) -> Tensor:
    """The tensor in float32 or float64; the same object if it has such a dtype already."""
    dtype = torch.promote_types(stored.dtype, torch.float32)
    return stored if stored.dtype == dtype else scratch.tensor(stored.shape, dtype).copy_(stored)


def edit_weight(weight: Tensor, edit: Edit) -> None:
    """Edit a matrix in place; an expert's matrix is edited with its own row norms.

    Args:
        weight: [d_out, d_in], float32 or float64.
    """
    ablation = edit.ablation(weight)
    ablation_weights = ablation.directions.new_tensor(edit.ablation_weights)
    ablation.edit(ablation_weights).edited_weight(weight, out=weight)


def edited_bias(bias: Tensor, edit: Edit) -> Tensor:
    """Edited biases of experts under row normalization `none`.

    There the edit applies to the sum of the experts' outputs, which includes the biases.

    Args:
        bias: [..., d_out], float32 or float64.
    """
    no_weight = bias.new_zeros(bias.shape[-1], 1)
    ablation = replace(edit, row_normalization="none").ablation(no_weight)
    moving = replace(ablation, moves_bias=True)
    return moving.edit(ablation.directions.new_tensor(edit.ablation_weights)).edited_bias(bias)


def source_of(model: Model) -> Checkpoint | None:
    """The safetensors files that a model was loaded from; None if they are not on this machine.

    Packed weights are shown unpacked.

    Raises:
        ExportError: A file is damaged.
    """
    folder = base_folder(model.options.model, base_revision(model))
    found = None if folder is None else format_.read_checkpoint(folder)
    return None if found is None else unpacked(found, model.options.model)


def parameter_edits(model: Model, plan: Plan, directions: Tensor) -> list[ParameterEdit]:
    """The edits of a plan, one for each parameter that it changes.

    Args:
        directions: float32 [layers + 1, hidden] or [layers + 1, k, hidden].
    """
    from heretic.model.editing import planned

    found: dict[str, ParameterEdit] = {}
    for writer, ablation_weights, basis in planned(model.writers, plan, directions, model.fits):
        name = writer.parameter_name  # the same for all experts of a block
        moves = writer.edited_in_sum(plan.row_normalization) and writer.bias() is not None
        found[name] = ParameterEdit(
            name,
            Edit(basis, ablation_weights, plan.row_normalization, writer.gains),
            transposed=writer.transposed,
            bias=f"{name}_bias" if moves else None,
            stacked=writer.experts if writer.stacked_by_rows else 0,
        )
    return list(found.values())


def tensor_edits(
    model: object, checkpoint: Checkpoint, edits: Iterable[ParameterEdit]
) -> list[TensorEdit]:
    """Turn edits of parameters into edits of the tensors that they are loaded from.

    Args:
        model: The transformers model that has the parameters.

    Raises:
        StreamError: A parameter's tensors are missing, or not in full precision.
    """
    edits = list(edits)
    biases = [edit.bias for edit in edits if edit.bias is not None]
    sources = find_sources(model, checkpoint, [*(edit.name for edit in edits), *biases])
    found = [
        TensorEdit(
            source.key,
            edit.edit,
            transposed=edit.transposed != source.transposed,
            stacked=edit.stacked,
        )
        for edit in edits
        for source in sources[edit.name]
    ]
    found += [
        TensorEdit(source.key, edit.edit, is_bias=True)
        for edit in edits
        if edit.bias is not None
        for source in sources[edit.bias]
    ]
    for tensor in found:
        _check_shape(tensor, checkpoint)
    return found


def _check_shape(edit: TensorEdit, checkpoint: Checkpoint) -> None:
    """Check that a tensor's output dimension is that of the directions.

    Raises:
        StreamError: It is not.
    """
    shape, width = checkpoint.tensors[edit.key].shape, edit.edit.width
    dimensions = (1, 2) if edit.is_bias else (2, 3)
    outputs = -1 if edit.is_bias or edit.transposed else -2
    if len(shape) not in dimensions or shape[outputs] != width:
        raise StreamError(
            f"{edit.key} has the shape {list(shape)} in {checkpoint.folder}, which does not write "
            f"to a residual stream of width {width}.",
            remedy="Export an adapter instead (--export-strategy adapter).",
        )


def write_streamed(
    checkpoint: Checkpoint, edits: Iterable[TensorEdit], folder: Path, reporter: Reporter
) -> Rounded:
    """Write a checkpoint's weight files, with some tensors edited, and their index.

    Memory stays at a few times the largest edited matrix.

    Returns:
        What packing edited weights anew has changed.

    Raises:
        ExportError: A weight file is damaged, or an edited weight cannot be packed.
    """
    if checkpoint.index is not None:
        write_text(folder / format_.INDEX, checkpoint.index)
    scratch = Scratch()
    edits = list(edits)
    packed = {
        edit.key: PackedEdit(
            partial(edit.apply, scratch=scratch), len(edit.edit.ablation_weights), edit.transposed
        )
        for edit in edits
        if edit.key in checkpoint.packed
    }
    by_file = _by_file(checkpoint, (e for e in edits if e.key not in packed), scratch)
    progress = _counter(checkpoint.size + packed_bytes(checkpoint, packed), reporter)
    for file in checkpoint.files:
        destination = folder / file.relative_to(checkpoint.folder)
        destination.parent.mkdir(parents=True, exist_ok=True)
        format_.copy_edited(file, destination, by_file.get(file, {}), progress, scratch)
    return rewrite(checkpoint, packed, folder, progress)


def _by_file(
    checkpoint: Checkpoint, edits: Iterable[TensorEdit], scratch: Scratch
) -> Mapping[Path, Mapping[Entry, Callable[[Tensor], None]]]:
    by_file: dict[Path, dict[Entry, Callable[[Tensor], None]]] = {}
    for edit in edits:
        entry = checkpoint.tensors[edit.key]
        if edit.stacked:
            rows, width = entry.shape
            entry = replace(entry, shape=(edit.stacked, rows // edit.stacked, width))
        by_file.setdefault(entry.file, {})[entry] = partial(edit.apply, scratch=scratch)
    return by_file


def _counter(total: int, reporter: Reporter) -> Callable[[int], None]:
    """A function that is called with newly written bytes, and reports megabytes of `total`."""
    done = told = 0

    def add(size: int) -> None:
        nonlocal done, told
        done += size
        if done - told >= TOLD or done == total:
            told = done
            reporter.emit(StageProgress(done // MEGABYTE, total // MEGABYTE, "MB"))

    return add
