"""What a GGUF file holds: architecture, tensors and their types."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from heretic.errors import ExportError
from heretic.gguf.file_types import FileType


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a GGUF file.

    Attributes:
        name: As llama.cpp calls it, such as `blk.0.ffn_down.weight`.
        kind: Its type, such as `Q4_K`.
        width: Values in a row.
        rows: Number of rows.
    """

    name: str
    kind: str
    width: int
    rows: int

    @property
    def is_block_matrix(self) -> bool:
        """Whether it is a matrix of a layer: embedding and output head are none."""
        return self.rows > 1 and self.name.startswith("blk.") and self.name.endswith(".weight")


@dataclass(frozen=True, slots=True)
class Content:
    """What a GGUF file says of its model.

    Attributes:
        architecture: Such as `llama`.
        blocks: Number of layers.
    """

    architecture: str
    blocks: int
    tensors: tuple[Tensor, ...]


def read_content(path: Path) -> Content:
    """Read the head of a GGUF file, versions 2 and 3, little-endian.

    The package `gguf` reads it too, but makes an object of each token of the vocabulary.

    Raises:
        ExportError: It is damaged.
    """
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            return _content(_Head(data), len(data))
    except (OSError, ValueError, struct.error) as error:
        raise ExportError(f"{path} cannot be read as a GGUF file: {error}.") from error


_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
"""Types of values, by their numbers in a GGUF file; scalars with their codes of `struct`."""


class _Head:
    """Reads one value after the other.

    Attributes:
        place: Offset of the next one, in bytes.
    """

    def __init__(self, data: mmap) -> None:
        self._data = data
        self.place = 0

    def scalar(self, code: str) -> Any:
        """The next value with that code of `struct`."""
        (value,) = struct.unpack_from(f"<{code}", self._data, self.place)
        self.place += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        """The next string."""
        return self._bytes(self.scalar("Q")).decode("utf-8")

    def value(self) -> Any:
        """The next value with its type before it; None in place of an array, which is skipped."""
        kind = self.scalar("I")
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.scalar(self._code(kind))
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            for _ in range(count):
                self._skip(self.scalar("Q"))
        else:
            self._skip(count * struct.calcsize(self._code(kind)))
        return None

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:  # llama.cpp reads no array of arrays either
            raise ValueError(f"it has a value of type {kind}")
        return _SCALARS[kind]

    def _bytes(self, count: int) -> bytes:
        start = self.place
        self._skip(count)
        return self._data[start : self.place]

    def _skip(self, count: int) -> None:
        if count > len(self._data) - self.place:
            raise ValueError("it ends too early")
        self.place += count


def _content(head: _Head, size: int) -> Content:
    """Raises an error where the tensors do not fit into a file of that size, in bytes."""
    if (magic := head.scalar("4s")) != b"GGUF":
        raise ValueError(f"it begins with {magic!r}")
    if (version := head.scalar("I")) not in (2, 3):
        raise ValueError(f"it has version {version}")
    count, fields = head.scalar("Q"), head.scalar("Q")
    values = {head.text(): head.value() for _ in range(fields)}
    found = [_tensor(head) for _ in range(count)]
    alignment = _whole(values, "general.alignment", 32)
    if alignment == 0:
        raise ValueError("its general.alignment is 0")
    start = -(-head.place // alignment) * alignment
    if any(start + end > size for _, end in found):
        raise ValueError("it ends before its last tensor")
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("it has no text general.architecture")
    blocks = _whole(values, f"{architecture}.block_count")
    return Content(architecture, blocks, tuple(tensor for tensor, _ in found))


def _whole(values: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = values.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"it has no whole number {name}")
    return value


def _tensor(head: _Head) -> tuple[Tensor, int]:
    """The next tensor, and where it ends after the head, in bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name = head.text()
    shape = [head.scalar("Q") for _ in range(head.scalar("I"))]
    kind, offset = GGMLQuantizationType(head.scalar("I")), head.scalar("Q")
    width, total = (shape or [1])[0], math.prod(shape)
    values, their_bytes = GGML_QUANT_SIZES[kind]
    tensor = Tensor(name, kind.name, width, total // max(width, 1))
    return tensor, offset + total // values * their_bytes


def fallbacks(content: Content, kind: FileType) -> dict[str, int]:
    """How many matrices have another type since their rows are no multiple of the type's block.

    Returns:
        The number of matrices by their type; empty where all rows fit.
    """
    if not kind.is_quantised:
        return {}
    found = [one for one in content.tensors if one.rows > 1 and one.width % kind.block]
    return dict(Counter(one.kind for one in found if one.kind not in ("F32", kind.tensor)))


def without_importance(content: Content, names: Collection[str]) -> tuple[str, ...]:
    """Matrices of layers that an importance matrix says nothing of.

    Args:
        names: Names of the tensors that it has.
    """
    return tuple(
        one.name for one in content.tensors if one.is_block_matrix and one.name not in names
    )
