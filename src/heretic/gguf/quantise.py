"""GGUF files in other types, made by llama.cpp's own quantiser."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from heretic.errors import ExportError
from heretic.gguf.bindings import bindings, errors_told, threads
from heretic.gguf.file_types import FileType

Floats = npt.NDArray[np.float32]


def quantise(
    source: Path,
    target: Path,
    kind: FileType,
    importance: Mapping[str, Floats] | None = None,
) -> None:
    """Write a GGUF file in another type.

    Args:
        source: A file of an unquantised type.
        importance: Mean square of each input of each matrix, by the name of its tensor, float32
            [inputs], or [experts * inputs] where several matrices are one tensor.

    Raises:
        ExportError: llama.cpp fails.
    """
    bound = bindings()
    ffi, lib = bound.ffi, bound.lib
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = kind.number, threads()
    held: list[Any] = []  # what C points to must live until it returns
    if importance:
        entries = ffi.new("struct llama_model_imatrix_data[]", len(importance) + 1)
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            row = np.ascontiguousarray(values, np.float32)
            held += [row, ffi.new("char[]", name.encode()), ffi.from_buffer("float[]", row)]
            entry.name, entry.data, entry.size = held[-2], held[-1], row.size
        parameters.imatrix = entries  # the last one has no name
    pointer = ffi.new("llama_model_quantize_params *", parameters)
    with errors_told() as told:
        status = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), pointer)
        if status != 0:
            reason = told[-1].rstrip(".") if told else f"llama_model_quantize returned {status}"
            raise ExportError(
                f"llama.cpp cannot make {target.name}: {reason}.",
                remedy="Choose another type; check the free space.",
            )
