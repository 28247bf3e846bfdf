"""A folder of safetensors files: what is where in it, and copies with some tensors rewritten.

Files are written in the order of their bytes; what stays as it is goes through the kernel where
that copies between files. Memory maps are not used: their pages count as memory of the process, and
a checkpoint may be larger than the machine's.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heretic.errors import ExportError
from heretic.export.files import REPRODUCTION, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

CHUNK = 2**20
"""Bytes that are read or written at once; calls with 16 MB took three times as long or more."""

SENT = 16 * 2**20
"""Bytes that the kernel copies at once."""

LARGEST_HEADER = 100 * 2**20
"""The format's own limit, in bytes."""

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""What can be edited: numbers that stand for themselves."""

OTHER_WEIGHTS = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".ggml", ".onnx", ".onnx_data", ".h5"}
    | {".msgpack", ".tflite", ".npz", ".mlmodel", ".nemo", ".safetensors"}
)
"""Endings of files with weights, which would go on unedited beside the edited ones."""

NOT_SENT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""How a file system says that it does not copy by itself."""

OTHER_FOLDERS = frozenset({"original", "onnx", "openvino", "gguf", "metal", "coreml"})
"""Folders that hold the model in other formats."""

Progress = Callable[[int], None]
"""Told how many bytes more were written."""


class Scratch:
    """Memory for one tensor at a time, used again: new pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[torch.dtype, Tensor] = {}

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, valid until the next one of that dtype is asked for."""
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
        key: Its name there.
        file: The file that holds it.
        dtype: As the format calls it, e.g. `BF16`.
        start, end: Its bytes, counted from the beginning of the file.
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
        tensors: Every tensor in them by its name there.
    """

    folder: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Entry]

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def quantization(self) -> str | None:
        """What config.json calls the quantisation of the weights; None without one."""
        config = self.folder / "config.json"
        found = read_json(config).get("quantization_config") if config.is_file() else None
        return str(found.get("quant_method", "unknown")) if isinstance(found, dict) else None

    def other_files(self) -> tuple[list[Path], list[Path]]:
        """The rest of the folder: files that belong to the model, and other weights.

        Relative to the folder. What is hidden (`.git`, `.cache`), and models saved inside the
        folder, are in neither list.
        """
        kept: list[Path] = []
        left_out: list[Path] = []
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if path.is_file() and path not in self.files and not self._is_foreign(name):
                (left_out if self._is_other_weight(name) else kept).append(name)
        return kept, left_out

    def _is_foreign(self, name: Path) -> bool:
        inner = list(name.parents)[:-1]
        hidden = any(part.startswith(".") for part in name.parts)
        return hidden or any((self.folder / place / REPRODUCTION).exists() for place in inner)

    def _is_other_weight(self, name: Path) -> bool:
        in_folder = any(part.lower() in OTHER_FOLDERS for part in name.parts[:-1])
        is_own_index = name == Path(INDEX) and self.folder / SINGLE not in self.files
        is_index = name.name.endswith(".index.json") and not is_own_index
        return in_folder or is_index or name.suffix.lower() in OTHER_WEIGHTS


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """What is where in a folder; None if it does not hold all of a model as safetensors.

    An adapter on top of another model is none either: its weights are the other's.

    Raises:
        ExportError: A file is damaged.
    """
    if (folder / "adapter_config.json").exists():
        return None
    if (folder / SINGLE).is_file():
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    else:
        return None
    files = tuple(folder / name for name in names)
    if not all(map(_is_inside, names)) or not all(file.is_file() for file in files):
        return None
    tensors = {entry.key: entry for file in files for entry in read_header(file)}
    return Checkpoint(folder, files, tensors)


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def read_header(file: Path) -> list[Entry]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        ExportError: It is no safetensors file, or is cut short.
    """
    try:
        with file.open("rb") as reader:
            length = int.from_bytes(reader.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError("its header is too long")
            header: dict[str, Any] = json.loads(reader.read(length))
        header.pop("__metadata__", None)
        entries = [_entry(key, file, 8 + length, fields) for key, fields in header.items()]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file, str(error)) from error
    entries.sort(key=lambda entry: entry.start)
    end = max((entry.end for entry in entries), default=8 + length)
    if file.stat().st_size != end:
        raise _damaged(file, f"it has {file.stat().st_size} bytes and should have {end}")
    return entries


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
    """Copy a weight file byte for byte, but for some tensors.

    Args:
        scratch: Where tensors are read to.
        edits: By tensor of that file, what changes it in place. One of three dimensions is handed
            over one matrix after another, so that a layer's experts are never in memory together.

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
    """Let the kernel copy as much as it will, and say how much that was: 0 outside Linux."""
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


def copy_files(source: Path, names: list[Path], folder: Path) -> None:
    """Copy files, given relative to `source`, to the same places in `folder`."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
