"""The first bytes of files: what they really are, and whether weight files are whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heretic.system.documents import parse_json

LARGEST_HEADER = 100 * 2**20
"""The limit of the safetensors format, in bytes."""

LFS = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<error", b"<head")

_SEEN = 512


def disguise(file: Path) -> tuple[str, str] | None:
    """What a file of a model is instead of what its name says, and the remedy; None if nothing.

    Raises:
        OSError: It cannot be read.
    """
    with file.open("rb") as reader:
        head = reader.read(_SEEN)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "is empty", "Download it again."
    if head.startswith(LFS):
        return (
            "is a pointer of git-lfs, not the file itself",
            f"Run `git lfs pull` in {file.parent}, or download the model again.",
        )
    if text.startswith(PAGES):
        return (
            "holds a web page, which a server sent instead of the file",
            "Download it again; a gated model needs a login (`hf auth login`).",
        )
    return None


def stays_inside(name: str) -> bool:
    """Whether a file that an index names lies in the index's folder, or below it."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def safetensors_header(file: Path) -> tuple[int, dict[str, Mapping[str, Any]]]:
    """The header of a whole safetensors file.

    Returns:
        The position of the first tensor's first byte, and for each tensor `dtype`, `shape` and
        `data_offsets` (start and end, counted from that position).

    Raises:
        ValueError: It is not a safetensors file, or not a whole one.
        OSError: It cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as reader:
        start = reader.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > LARGEST_HEADER:
            raise ValueError("it does not begin with the length of a header")
        if 8 + length > size:
            raise ValueError(f"it has {size} bytes, fewer than its header alone")
        header = parse_json(reader.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not a table")
    header.pop("__metadata__", None)
    end = 8 + length + max((_end(key, fields) for key, fields in header.items()), default=0)
    if size != end:
        raise ValueError(f"it has {size} bytes and should have {end}")
    return 8 + length, header


def _end(key: str, fields: Any) -> int:
    try:
        start, end = fields["data_offsets"]
        shape, dtype = fields["shape"], fields["dtype"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its header does not say where {key} is") from error
    sound = (
        isinstance(dtype, str)
        and isinstance(shape, list)
        and all(type(number) is int and number >= 0 for number in (start, end, *shape))
        and start <= end
    )
    if not sound:
        raise ValueError(f"its header does not say where {key} is")
    return int(end)
