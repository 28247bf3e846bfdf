"""llama.cpp's libraries in a form for older C libraries: what is exchanged, and what is refused."""

from __future__ import annotations

import ctypes
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from heretic.errors import ExportError
from heretic.gguf import older_libc
from heretic.gguf.bindings import PACKAGE
from heretic.gguf.older_libc import C23, libc_version, older_form, usable_copy

OLDER, NEWER, ANCIENT = (2, 36), (2, 99), (2, 2)


def library() -> Path:
    """The library of llama.cpp, as its package brings it."""
    found = find_spec(PACKAGE)
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "libllama.so"


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(older_libc, "libc_version", lambda: OLDER)
    return monkeypatch


def names(content: bytes) -> set[bytes]:
    """The names of imported functions by which C23 programs ask for `strtol` and its like."""
    return {symbol for symbol in _undefined(content) if symbol.startswith(C23)}


def _undefined(content: bytes) -> list[bytes]:
    data = bytearray(content)
    sections = older_libc._sections(data)
    symbols = next(one for one in sections if one.kind == 11)
    texts = sections[symbols.link].offset
    starts = range(symbols.offset, symbols.offset + symbols.size, 24)
    return [
        older_libc._text(data, texts + int.from_bytes(data[place : place + 4], "little"))
        for place in starts
        if data[place + 6 : place + 8] == b"\0\0"
    ]


def test_c23_names_are_exchanged_and_nothing_else(present: pytest.MonkeyPatch):
    for file in sorted(library().parent.glob("lib*.so*")):
        before = file.read_bytes()
        after = older_form(before, file.name)
        assert len(after) == len(before)
        assert not names(after)
        exchanged = [name.removeprefix(C23) for name in _undefined(before)]
        assert _undefined(after) == exchanged
        changed = sum(left != right for left, right in zip(before, after, strict=True))
        assert changed <= 16 * len(names(before)) + 4
    assert names(library().read_bytes()), "otherwise the module is not needed any more"


def test_the_copies_load(present: pytest.MonkeyPatch, tmp_path: Path):
    present.setenv("XDG_CACHE_HOME", str(tmp_path))
    if libc_version() is None or (libc_version() or ()) < OLDER:
        pytest.skip("this system is older still")
    copy = usable_copy(library(), "release")
    assert copy == tmp_path / "heretic" / "libraries" / "release" / "libllama.so"
    there = {file.name for file in copy.parent.iterdir()}
    assert there == {file.name for file in library().parent.glob("lib*.so*")}
    assert ctypes.CDLL(str(copy)).llama_max_devices() > 0


def test_a_damaged_copy_is_made_again_and_a_good_one_is_kept(
    present: pytest.MonkeyPatch, tmp_path: Path
):
    present.setenv("XDG_CACHE_HOME", str(tmp_path))
    copy = usable_copy(library(), "release")
    good = copy.read_bytes()
    inode = copy.stat().st_ino
    usable_copy(library(), "release")
    assert copy.stat().st_ino == inode
    copy.write_bytes(good[:1000])
    usable_copy(library(), "release")
    assert copy.read_bytes() == good


def test_what_needs_more_than_other_names_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(older_libc, "libc_version", lambda: ANCIENT)
    with pytest.raises(ExportError) as caught:
        older_form(library().read_bytes(), "libllama.so")
    assert re.search(r"libllama.so of llama.cpp needs \w+ of a newer C library", str(caught.value))
    assert "glibc 2.2." in str(caught.value)


@pytest.mark.parametrize("version", [NEWER, None])
def test_where_it_is_not_needed_nothing_is_changed(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...] | None
):
    monkeypatch.setattr(older_libc, "libc_version", lambda: version)
    content = library().read_bytes()
    assert older_form(content, "libllama.so") == content


@pytest.mark.parametrize("content", [b"", b"MZ" + b"\0" * 99, b"\x7fELF\x01\x01" + b"\0" * 99])
def test_other_files_are_left_as_they_are(present: pytest.MonkeyPatch, content: bytes):
    assert older_form(content, "other.so") == content


def test_the_system_says_its_version():
    found = libc_version()
    assert (found is None) == ("CS_GNU_LIBC_VERSION" not in os.confstr_names)
