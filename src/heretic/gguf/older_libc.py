"""llama.cpp's libraries on systems with an older C library than they were built on.

The wheel was built where the C library is glibc 2.38. What the libraries need of that release are
four functions by the names that C23 headers give them, `__isoc23_strtol` and its like. They differ
from `strtol` and its like, which every release has, in that they read binary numbers ("0b1") too,
which llama.cpp does not rely on. In a copy, the names are exchanged and the demand is made a wish.

Format: System V ABI, chapter 5 (dynamic symbols), and the Linux Standard Base on symbol versions.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from heretic.errors import ExportError
from heretic.system.files import user_cache, write_atomic

C23 = b"__isoc23_"
_WEAK, _UNVERSIONED = 2, 1
_DYNAMIC_SYMBOLS, _VERSIONS, _NEEDS = 11, 0x6FFFFFFF, 0x6FFFFFFE
"""Types of sections: dynamic symbols, their versions, what versions are needed."""


def usable_copy(library: Path, name: str) -> Path:
    """A copy of a library, with those beside it, that older C libraries can load.

    Args:
        library: The library, in its package's folder.
        name: Name of the folder of the copies in the user's cache; it says which release they are.

    Raises:
        ExportError: They need more of a newer C library than other names for what there is.
        HereticError: The copies cannot be written.
    """
    folder = user_cache() / "heretic" / "libraries" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(library.parent.glob("lib*.so*")):
        content = older_form(file.read_bytes(), file.name)
        copy = folder / file.name
        if not copy.is_file() or copy.read_bytes() != content:
            write_atomic(copy, content, kind=ExportError)
    return folder / library.name


def libc_version() -> tuple[int, ...] | None:
    """Version of the GNU C library of this system; None where there is another."""
    try:
        name, _, version = str(os.confstr("CS_GNU_LIBC_VERSION")).partition(" ")
    except (AttributeError, ValueError, OSError):
        return None
    return tuple(map(int, version.split("."))) if name == "glibc" and version else None


@dataclass(frozen=True, slots=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int


def older_form(content: bytes, name: str) -> bytes:
    """A 64-bit ELF library without the demand for a C library that is newer than this system's.

    Raises:
        ExportError: It needs more than other names for functions that there are.
    """
    data = bytearray(content)
    present = libc_version()
    if present is None or data[:6] != b"\x7fELF\x02\x01":
        return content
    sections = _sections(data)
    by_kind = {section.kind: section for section in sections}
    if not {_DYNAMIC_SYMBOLS, _VERSIONS, _NEEDS} <= set(by_kind):
        return content
    symbols, versions, needs = (by_kind[kind] for kind in (_DYNAMIC_SYMBOLS, _VERSIONS, _NEEDS))
    texts = sections[symbols.link].offset
    newer = set()
    for place, text, index in _needed(data, needs, texts):
        if _is_newer(text, present):
            newer.add(index)
            (flags,) = struct.unpack_from("<H", data, place + 4)
            struct.pack_into("<H", data, place + 4, flags | _WEAK)
    for number in range(symbols.size // 24):
        version = versions.offset + 2 * number
        if struct.unpack_from("<H", data, version)[0] & 0x7FFF not in newer:
            continue
        place = symbols.offset + 24 * number
        (start,) = struct.unpack_from("<I", data, place)
        symbol = _text(data, texts + start)
        if not symbol.startswith(C23):
            raise ExportError(
                f"{name} of llama.cpp needs {symbol.decode()} of a newer C library than this "
                f"system's, which is glibc {'.'.join(map(str, present))}.",
                remedy="Use a newer system, or another release of llama-cpp-py-sync.",
            )
        struct.pack_into("<I", data, place, start + len(C23))
        struct.pack_into("<H", data, version, _UNVERSIONED)
    return bytes(data)


def _sections(data: bytearray) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    found = []
    for number in range(count):
        place = table + size * number
        (kind,) = struct.unpack_from("<I", data, place + 4)
        offset, length, link = struct.unpack_from("<QQI", data, place + 24)
        found.append(_Section(kind, offset, length, link))
    return found


def _needed(data: bytearray, needs: _Section, texts: int) -> Iterator[tuple[int, str, int]]:
    """Each needed version: where it stands in the file, its name, its index."""
    entry = needs.offset
    while True:
        _, _, _, first, following = struct.unpack_from("<HHIII", data, entry)
        place = entry + first
        while True:
            _, _, index, name, more = struct.unpack_from("<IHHII", data, place)
            yield place, _text(data, texts + name).decode(), index
            if not more:
                break
            place += more
        if not following:
            return
        entry += following


def _text(data: bytearray, start: int) -> bytes:
    return bytes(data[start : data.index(0, start)])


def _is_newer(name: str, present: tuple[int, ...]) -> bool:
    """Whether a version such as `GLIBC_2.38` is above the one that is present."""
    family, _, version = name.partition("_")
    parts = version.split(".")
    if family != "GLIBC" or not all(part.isdecimal() for part in parts):
        return False
    return tuple(map(int, parts)) > present
