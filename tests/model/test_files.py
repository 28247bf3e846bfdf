"""A look at a model's files before they are read: errors name the file and the remedy."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support import tiny
from transformers import AutoConfig, AutoModelForSequenceClassification

from heretic.config import Settings
from heretic.errors import ModelError, ScorerError, SettingsError
from heretic.judges.local import ClassifierOptions, LocalJudge
from heretic.model import Model
from heretic.model.files import check_files
from heretic.system.headers import safetensors_header

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123456\n"
PAGE = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"
WEIGHTS = "model.safetensors"
LFS, HTML = (POINTER, "git-lfs.*git lfs pull"), (PAGE, "web page.*hf auth login")


def load(path: Path, **overrides: Any) -> Model:
    given = {"dtypes": ["float32"], "response_prefix": "", **overrides}
    return Model(Settings(model=str(path), **given))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.folder(tmp_path / "model")


@pytest.mark.parametrize(
    "name", [WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize(("content", "said"), [LFS, HTML, (b"", "is empty")])
def test_files_that_are_something_else(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name} .*{said}") as error:
        load(folder)
    assert "dtype" not in str(error.value)


def test_a_truncated_vocabulary(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[:500])
    with pytest.raises(ModelError, match=r"tokenizer\.json is not valid JSON.*line \d+"):
        load(folder)


def test_a_template_in_another_encoding(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes("{# é #}".encode("latin-1"))
    with pytest.raises(ModelError, match=r"chat_template\.jinja is not UTF-8 text \(line 1\)"):
        load(folder)


@pytest.mark.parametrize("size", [4, 100, -10])
def test_a_truncated_file(folder: Path, size: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size])
    with pytest.raises(ModelError, match=f"{WEIGHTS} is not a whole safetensors file") as error:
        load(folder)
    assert "Download the model again" in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda header: [],
        lambda header: {**header, "x": {}},
        lambda header: {**header, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, -4]}},
        lambda header: {**header, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**9]}},
        lambda header: {**header, "x": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
    ],
)
def test_a_damaged_header(folder: Path, damage: Callable[[Any], Any]) -> None:
    file = folder / WEIGHTS
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(damage(json.loads(data[8:start]))).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[start:])
    with pytest.raises(ModelError, match=f"{WEIGHTS} is not a whole safetensors file"):
        load(folder)


def test_a_whole_header(folder: Path) -> None:
    _, header = safetensors_header(folder / WEIGHTS)
    assert {key: tuple(value["shape"]) for key, value in header.items()} == {
        key: tuple(value.shape) for key, value in load_file(folder / WEIGHTS).items()
    }


def test_shards(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, max_shard_size="20KB")
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(POINTER)
    with pytest.raises(ModelError, match=rf"{first.name} is a pointer of git-lfs"):
        load(folder)
    first.unlink()
    with pytest.raises(ModelError, match=f"index.json names {first.name}, which is not there"):
        load(folder)
    second.unlink()
    with pytest.raises(ModelError, match=f"{first.name} and 1 more, which are not there"):
        load(folder)
    first.write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    for content in ("{}", "[1]", '{"weight_map": {"a": 1}}', '{"weight_map": null}', "{"):
        index.write_text(content)
        with pytest.raises(ModelError, match=r"index\.json"):
            load(folder)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/outside.safetensors"])
def test_an_index_that_leads_out_of_the_folder(folder: Path, place: str) -> None:
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    table = dict.fromkeys(("lm_head.weight", "model.norm.weight"), place)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(ModelError, match=f"{place}, which is outside the model's folder"):
        load(folder)


def test_an_index_may_name_files_in_folders_below(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, max_shard_size="20KB")
    index = folder / f"{WEIGHTS}.index.json"
    content = json.loads(index.read_text())
    (folder / "shards").mkdir()
    for file in folder.glob("*.safetensors"):
        file.rename(folder / "shards" / file.name)
    table = {key: f"shards/{file}" for key, file in content["weight_map"].items()}
    index.write_text(json.dumps({**content, "weight_map": table}))
    assert load(folder).remarks == ()


def test_shards_without_their_index(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, max_shard_size="20KB")
    (folder / f"{WEIGHTS}.index.json").unlink()
    with pytest.raises(ModelError, match=r"of-\d+\.safetensors, but no .*index\.json"):
        load(folder)


def test_what_is_cached_in_part_may_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a folder of the user's must be whole; the Hub sends what the cache lacks."""
    folder = tiny.folder(tmp_path, max_shard_size="20KB")
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    first.unlink()
    monkeypatch.setattr("heretic.model.files.base_folder", lambda *_: folder)
    check_files("org/model", None, allow_pickle=False)
    second.write_bytes(POINTER)
    with pytest.raises(ModelError, match="git-lfs"):
        check_files("org/model", None, allow_pickle=False)


def test_places_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"There is no folder .*nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "org" / "model" / "run-1").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"holds no model \(no config\.json\)") as error:
        load(tmp_path / "org" / "model")
    assert "Hub is hidden" not in str(error.value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"org/model is a folder here .* hidden by it.*Rename"):
        load(Path("org/model"))
    (tmp_path / "org/model/run-1/config.json").write_text("{}")
    with pytest.raises(ModelError, match="A folder in it does: org/model/run-1"):
        load(Path("org/model"))
    (tmp_path / "org/model/x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"name one, such as org/model/x\.gguf"):
        load(Path("org/model"))
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(ModelError, match="is a file, and not a GGUF file"):
        load(tmp_path / "note.txt")


def test_a_configuration_alone(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="holds a configuration, but no weights"):
        load(folder)


@pytest.mark.parametrize(("content", "said"), [LFS, HTML, (b"GGUX....", "is not a GGUF file")])
def test_gguf_files(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "model.gguf"
    with pytest.raises(ModelError, match="There is no file"):
        load(file)
    file.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        load(file)


# --- pickles -------------------------------------------------------------------------------


def as_pickle(folder: Path, **more: Any) -> Path:
    """The folder with its weights as `torch.save` writes them."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save({**tensors, **more}, folder / "pytorch_model.bin")
    return folder


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def test_pickles_need_consent(folder: Path) -> None:
    before = load(folder).get_logits(["x"])
    as_pickle(folder)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin\), which can run code") as error:
        load(folder)
    assert "--allow-pickle" in str(error.value)
    assert torch.allclose(load(folder, allow_pickle=True).get_logits(["x"]), before, atol=1e-5)


def test_consent_is_for_tensors_only(folder: Path, tmp_path: Path) -> None:
    as_pickle(folder, x=Payload(tmp_path / "ran"))
    with pytest.raises(ModelError, match="hold more than tensors"):
        load(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_safetensors_are_preferred(folder: Path, tmp_path: Path) -> None:
    torch.save({"x": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    load(folder)
    load(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: POINTER, "git-lfs"),
        (lambda data: data[:-50], "cut off"),
        (lambda data: b"tensors", "not a weight file of PyTorch"),
    ],
)
def test_damaged_pickles(folder: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    file = as_pickle(folder) / "pytorch_model.bin"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelError, match=said):
        load(folder, allow_pickle=True)


def test_a_file_that_was_found_gives_no_consent(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text("allow_pickle = true\n")
    with pytest.raises(SettingsError, match="--allow-pickle"):
        load(folder)


def test_a_judges_pickles_need_consent(tmp_path: Path) -> None:
    config = AutoConfig.for_model("llama", **tiny.SIZES)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    as_pickle(tmp_path)
    options = ClassifierOptions(model=str(tmp_path), counts=("LABEL_1",))
    with pytest.raises(ScorerError, match="--allow-pickle"):
        LocalJudge(options, "judge").check()
    judge = LocalJudge(options, "judge", allow_pickle=True)
    judge.check()
    assert len(judge.verdicts([])) == 0
