"""What libraries raise about a model's files becomes one line with the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support import tiny

from heretic.config import Settings
from heretic.errors import HereticError, ModelError
from heretic.main import run
from heretic.model import Model
from heretic.model.failures import model_errors

DEEP = "[" * 5000


def load(folder: Path) -> Model:
    return Model(Settings(model=str(folder), dtypes=["float32"], batch_size=2))


def changed(folder: Path, file: str, **values: Any) -> Path:
    """A model with other values in one of its files."""
    path = tiny.folder(folder / "model") / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return path.parent


def one_line(error: pytest.ExceptionInfo[HereticError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    "file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("content", [DEEP, "{", "[]", "null", '{"a": 1' + "1" * 5000 + "}", "\0"])
def test_files_that_are_no_json_object(tmp_path: Path, file: str, content: str):
    folder = tiny.folder(tmp_path / "model")
    (folder / file).write_text(content)
    with pytest.raises(ModelError) as error:
        load(folder)
    one_line(error, file.removesuffix(".json").partition("_")[0])


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("config.json", {"vocab_size": "many"}, ["configuration", "vocab_size"]),
        ("config.json", {"hidden_size": [32]}, ["configuration", "hidden_size"]),
        ("config.json", {"architectures": 3}, ["configuration", "architectures"]),
        ("config.json", {"model_type": ["llama"]}, ["config"]),
        ("config.json", {"num_attention_heads": 0}, ["model"]),
        ("config.json", {"is_encoder_decoder": True}, ["could not be run", "config.json"]),
        ("config.json", {"hidden_act": "none of them"}, ["none of them"]),
        ("tokenizer_config.json", {"tokenizer_class": 3}, ["tokenizer"]),
        ("tokenizer_config.json", {"eos_token": {"a": 1}}, ["tokenizer"]),
        ("tokenizer.json", {"model": {"type": "unheard of"}}, ["tokenizer"]),
        ("tokenizer.json", {"added_tokens": [{"id": -1}]}, ["tokenizer"]),
        ("generation_config.json", {"eos_token_id": {"a": 2}}, ["eos_token_id"]),
        ("generation_config.json", {"eos_token_id": ["2"]}, ["eos_token_id"]),
        ("generation_config.json", {"eos_token_id": 1.5}, ["eos_token_id"]),
    ],
)
def test_values_that_cannot_be_used(tmp_path: Path, file: str, values: Any, words: list[str]):
    folder = changed(tmp_path, file, **values)
    with pytest.raises(HereticError) as error:
        load(folder).get_responses(["Hello"], max_new_tokens=1)
    one_line(error, *words)


def test_inspecting_says_the_same(tmp_path: Path):
    folder = changed(tmp_path, "config.json", num_hidden_layers="three")
    with pytest.raises(ModelError) as error:
        run(["inspect", str(folder)])
    one_line(error, "configuration", "num_hidden_layers")


def test_what_is_wrong_with_every_dtype_is_said_once(tmp_path: Path):
    folder = changed(tmp_path, "config.json", num_attention_heads=0)
    with pytest.raises(ModelError) as error:
        Model(Settings(model=str(folder), dtypes=["float32", "bfloat16"]))
    assert str(error.value).count("zero") <= 1
    assert "dtypes" not in str(error.value)


def test_panics_of_other_languages_are_told_and_interruptions_pass():
    panic = type("PanicException", (BaseException,), {})
    told = pytest.raises(ModelError, match="tokenizer of m cannot be used: index out of")
    with told, model_errors("m", "tokenizer"):
        raise panic("index out of bounds")
    with pytest.raises(KeyboardInterrupt), model_errors("m", "tokenizer"):
        raise KeyboardInterrupt
