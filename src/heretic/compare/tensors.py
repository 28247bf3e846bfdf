"""Read tensors of safetensors files one matrix at a time, and compare their bytes.

Memory maps are not used, for the reason given in `heretic.export.safetensors.checkpoint`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from heretic.errors import ExportError
from heretic.export.safetensors.checkpoint import FLOATS, Entry

CHUNK = 2**20
"""Bytes that are read at once."""

MOST_EXPERTS, SMALLEST_EXPERT = 1024, 8
"""A tensor of three dimensions holds experts if it has at most so many matrices, and none of them
has a side that is shorter. Others, such as the kernels of convolutions, count as one matrix."""


def holds_experts(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape is a stack of matrices, one for each expert."""
    return len(shape) == 3 and shape[0] <= MOST_EXPERTS and min(shape[1:]) > SMALLEST_EXPERT


def can_read(entry: Entry) -> bool:
    """Whether a tensor holds unquantised floating-point numbers of at least 16 bits."""
    return entry.dtype in FLOATS


def matrices(entry: Entry) -> Iterator[Tensor]:
    """The matrices of a tensor in its own dtype: one, or one for each expert.

    Yields:
        [d_out, d_in] as stored; [n] for a tensor of one dimension or none.

    Raises:
        ExportError: The file ends early.
        KeyError: The tensor is not one that `can_read` accepts.
    """
    shape, dtype = entry.shape, FLOATS[entry.dtype]
    count = shape[0] if holds_experts(shape) else 1
    size = math.prod(shape) // max(count, 1)
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.start)
        for _ in range(count):
            matrix = torch.empty(size, dtype=dtype)
            _fill(file, memoryview(matrix.view(torch.uint8).numpy()))  # type: ignore[arg-type]
            yield matrix.view(_shape(shape))


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if holds_experts(shape):
        return shape[1:]
    if len(shape) < 2:
        return (math.prod(shape),)
    return shape[0], math.prod(shape[1:])


def same_bytes(left: Entry, right: Entry) -> bool:
    """Whether two tensors have the same dtype, shape and bytes.

    Raises:
        ExportError: A file ends early.
    """
    size = left.end - left.start
    if (left.dtype, left.shape, size) != (right.dtype, right.shape, right.end - right.start):
        return False
    with left.file.open("rb", buffering=0) as one, right.file.open("rb", buffering=0) as other:
        one.seek(left.start)
        other.seek(right.start)
        buffers = bytearray(CHUNK), bytearray(CHUNK)
        while size:
            part = min(size, CHUNK)
            for file, buffer in zip((one, other), buffers, strict=True):
                _fill(file, memoryview(buffer)[:part])
            if buffers[0] != buffers[1]:  # beyond a last, shorter part both are as before: equal
                return False
            size -= part
    return True


def _fill(file: FileIO, buffer: memoryview) -> None:
    while buffer:
        count = file.readinto(buffer[:CHUNK])
        if not count:
            raise ExportError(
                f"{Path(str(file.name))} is not a whole safetensors file: it ends early.",
                remedy="Download the model again.",
            )
        buffer = buffer[count:]
