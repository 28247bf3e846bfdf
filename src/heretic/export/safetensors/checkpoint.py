"""A folder of safetensors files: where its tensors are, and copies with some tensors rewritten.

Files are written from start to end; the kernel copies unchanged bytes where it can (sendfile).
Memory maps are not used: their pages count as memory of the process, and a checkpoint may be larger
than the machine's memory.
"""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heretic.errors import ExportError
from heretic.quantised.weights import Packed
from heretic.system.documents import parse_json, read_json, read_text
from heretic.system.headers import safetensors_header, stays_inside

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

CHUNK = 2**20
"""Bytes that are read or written at once; calls with 16 MB took three times as long or more."""

SENT = 16 * 2**20
"""Most bytes that one call of sendfile copies."""

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Dtypes that can be edited: unquantised floating-point numbers of at least 16 bits."""

NOT_SENT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of sendfile where the file system does not support it."""

Progress = Callable[[int], None]
"""Called with the number of bytes written since the last call."""


class Scratch:
    """Memory for one tensor of each dtype, used again: new pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[torch.dtype, Tensor] = {}

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, valid until the next call with that dtype."""
        size = math.prod(shape)
        held = self._held.get(dtype)
        if held is None or held.numel() < size:
            self._held.pop(dtype, None)
            held = self._held[dtype] = torch.empty(size, dtype=dtype)
        return held[:size].view(*shape)


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a checkpoint.

    Attributes:
        key: Its name in the checkpoint.
        file: The file that holds it.
        dtype: Its dtype as safetensors names it, e.g. `BF16`.
        start, end: Byte range in the file; `end` is exclusive.
    """

    key: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder with safetensors weights.

    Attributes:
        files: Its weight files, as transformers would load them.
        tensors: Every tensor in these files, by its name.
        index: The text of the file that lists several weight files; None without one.
        packed: Packed weights that stand in `tensors` in place of the tensors they are made of;
            see `heretic.export.safetensors.packed`.
    """

    folder: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Entry]
    index: str | None = None
    packed: Mapping[str, Packed[Entry]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def quantization(self) -> str | None:
        """Name of the quantisation in config.json; None if the weights are not quantised."""
        config = self.folder / "config.json"
        if not config.is_file():
            return None
        content = read_json(config, kind=ExportError, strict=False)
        found = content.get("quantization_config") if isinstance(content, dict) else None
        return str(found.get("quant_method", "unknown")) if isinstance(found, dict) else None


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the headers of a folder's weight files; None if it does not hold a whole model.

    A folder with an adapter gives None too: the weights are another model's.

    Raises:
        ExportError: A file is damaged.
    """
    if (folder / "adapter_config.json").exists():
        return None
    index = None
    if (folder / SINGLE).is_file():
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        index = read_text(folder / INDEX, kind=ExportError)
        names = _shards(index, folder / INDEX)
    else:
        return None
    files = tuple(folder / name for name in names)
    if not all(map(stays_inside, names)) or not all(file.is_file() for file in files):
        return None
    tensors = {entry.key: entry for file in files for entry in read_header(file)}
    return Checkpoint(folder, files, tensors, index)


def _shards(index: str, file: Path) -> list[str]:
    """The weight files that an index names.

    Raises:
        ExportError: It is damaged.
    """
    try:
        names = set(parse_json(index, strict=False)["weight_map"].values())
        if not all(isinstance(name, str) for name in names):
            raise ValueError("it names files by something else than texts")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{file} is not an index of weight files: {error}.", remedy="Download the model again."
        ) from error
    return sorted(names)


def read_header(file: Path) -> list[Entry]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        ExportError: It is not a safetensors file, or is truncated.
    """
    try:
        data, header = safetensors_header(file)
    except ValueError as error:
        raise _damaged(file, str(error)) from error
    entries = [_entry(key, file, data, fields) for key, fields in header.items()]
    return sorted(entries, key=lambda entry: entry.start)


def _entry(key: str, file: Path, data: int, fields: Mapping[str, Any]) -> Entry:
    start, end = fields["data_offsets"]
    return Entry(
        key, file, fields["dtype"], tuple(fields["shape"]), data + int(start), data + int(end)
    )


def _damaged(file: Path, reason: str) -> ExportError:
    return ExportError(
        f"{file} is not a whole safetensors file: {reason}.", remedy="Download the model again."
    )


def copy_edited(
    source: Path,
    destination: Path,
    edits: Mapping[Entry, Callable[[Tensor], None]],
    progress: Progress,
    scratch: Scratch,
) -> None:
    """Copy a weight file byte for byte, except for edited tensors.

    Args:
        edits: A function for each edited tensor of that file, which edits it in place. A tensor of
            three dimensions is passed one matrix at a time, so that a layer's experts are never in
            memory together.
        scratch: Memory that tensors are read into.

    Raises:
        ExportError: The file ends early.
    """
    with source.open("rb", buffering=0) as reader, destination.open("wb", buffering=0) as writer:
        for entry in sorted(edits, key=lambda entry: entry.start):
            _copy(reader, writer, entry.start - reader.tell(), progress)
            _rewrite(reader, writer, entry, edits[entry], progress, scratch)
        _copy(reader, writer, os.fstat(reader.fileno()).st_size - reader.tell(), progress)


def _copy(reader: FileIO, writer: FileIO, size: int, progress: Progress) -> None:
    size -= _send(reader, writer, size, progress)
    buffer = memoryview(bytearray(min(size, CHUNK)))
    while size:
        part = buffer[: min(size, CHUNK)]
        _fill(reader, part)
        _put(writer, part)
        size -= len(part)
        progress(len(part))


def _send(reader: FileIO, writer: FileIO, size: int, progress: Progress) -> int:
    """Let the kernel copy up to `size` bytes; returns how many it copied, 0 outside Linux."""
    sent, start = 0, reader.tell()
    if sys.platform != "linux":
        return 0
    try:
        while sent < size and (
            count := os.sendfile(
                writer.fileno(), reader.fileno(), start + sent, min(size - sent, SENT)
            )
        ):
            sent += count
            progress(count)
    except OSError as error:
        if error.errno not in NOT_SENT:
            raise
    reader.seek(start + sent)
    return sent


def _rewrite(
    reader: FileIO,
    writer: FileIO,
    entry: Entry,
    edit: Callable[[Tensor], None],
    progress: Progress,
    scratch: Scratch,
) -> None:
    shape = entry.shape[-2:]
    count = entry.shape[0] if len(entry.shape) == 3 else 1
    stored = scratch.tensor(shape, FLOATS[entry.dtype])
    data = memoryview(stored.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    for _ in range(count):
        _fill(reader, data)
        edit(stored)
        _put(writer, data)
        progress(len(data))


def _fill(reader: FileIO, buffer: memoryview) -> None:
    while buffer:
        count = reader.readinto(buffer[:CHUNK])
        if not count:
            raise _damaged(Path(str(reader.name)), "it ends early")
        buffer = buffer[count:]


def _put(writer: FileIO, data: memoryview) -> None:
    while data:
        data = data[writer.write(data[:CHUNK]) :]
