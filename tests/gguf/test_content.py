"""The head of a GGUF file is what llama.cpp's own reader finds, and damage is told."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
from tests.support import tiny_gguf

from heretic.errors import ExportError
from heretic.gguf.content import read_content


@pytest.fixture(params=[False, True], ids=["f32", "q8_0"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "a.gguf", tiny_gguf.model(), quantised=request.param)


def test_it_says_what_the_package_gguf_says(file: Path) -> None:
    reader = gguf.GGUFReader(file)
    kinds = {field.types[0] for field in reader.fields.values()}
    assert gguf.GGUFValueType.ARRAY in kinds
    found = read_content(file)
    assert found.architecture == reader.fields["general.architecture"].contents()
    assert found.blocks == reader.fields[f"{found.architecture}.block_count"].contents()
    assert [(one.name, one.kind, one.width, one.width * one.rows) for one in found.tensors] == [
        (one.name, one.tensor_type.name, one.shape[0], one.n_elements) for one in reader.tensors
    ]


@pytest.mark.parametrize("kept", [0, 3, 4, 7, 23, 200, 0.1, 0.5, 0.9])
def test_a_file_that_ends_too_early_is_refused(file: Path, kept: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if kept == int(kept) else kept * len(content))])
    with pytest.raises(ExportError, match="cannot be read as a GGUF file"):
        read_content(file)


@pytest.mark.parametrize(
    ("offset", "value"), [(0, b"GGML"), (4, b"\x01"), (7, b"\x03"), (16, b"\xff")]
)
def test_another_format_is_refused(file: Path, offset: int, value: bytes) -> None:
    """Another mark, an older version, another order of bytes, more fields than there are."""
    content = file.read_bytes()
    file.write_bytes(content[:offset] + value + content[offset + len(value) :])
    with pytest.raises(ExportError, match="cannot be read as a GGUF file"):
        read_content(file)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(name: str, kind: int, content: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + content


ARCHITECTURE = entry("general.architecture", 8, text("llama"))
BLOCKS = entry("llama.block_count", 4, struct.pack("<I", 2))


def head(path: Path, *entries: bytes, version: int = 3) -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, len(entries)) + b"".join(entries))
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_a_head_alone_is_read(tmp_path: Path, version: int) -> None:
    found = read_content(head(tmp_path / "a.gguf", ARCHITECTURE, BLOCKS, version=version))
    assert (found.architecture, found.blocks, found.tensors) == ("llama", 2, ())


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ((entry("x", 9, struct.pack("<IQQ", 8, 1, 2**64 - 1)),), "ends too early"),
        ((entry("x", 9, struct.pack("<IQ", 10, 2**63)), BLOCKS), "ends too early"),
        ((entry("x", 9, struct.pack("<IQ", 10, 2**40)),), "ends too early"),
        ((entry("x", 8, struct.pack("<Q", 2**63)),), "ends too early"),
        ((entry("x", 9, struct.pack("<IQIQ", 9, 1, 4, 0)),), "value of type 9"),
        ((entry("x", 77, b""),), "value of type 77"),
        ((entry("general.alignment", 4, bytes(4)),), "general.alignment is 0"),
        ((entry("general.alignment", 8, text("32")),), "no whole number general.alignment"),
        ((entry("general.architecture", 4, bytes(4)),), "no text general.architecture"),
        ((entry("llama.block_count", 9, struct.pack("<IQ", 4, 0)),), "no whole number llama"),
        ((entry("llama.block_count", 6, struct.pack("<f", float("inf"))),), "no whole number"),
    ],
)
def test_a_head_that_says_what_cannot_be_is_refused(
    tmp_path: Path, entries: tuple[bytes, ...], told: str
) -> None:
    with pytest.raises(ExportError, match=told):
        read_content(head(tmp_path / "a.gguf", ARCHITECTURE, BLOCKS, *entries))
