"""Ids without an embedding, and texts beyond the table of positions: one sentence, no traceback."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import tiny
from tests.support.zoo import text_inputs, tiny_model

from heretic.config import Settings
from heretic.errors import ModelError, PromptError
from heretic.model import Model
from heretic.model.limits import positions_of
from heretic.model.teacher_forcing import reading

TABLES = {
    "gpt2": 512,
    "gpt_neo": 512,
    "gptj": 512,
    "codegen": 512,
    "opt": 512,
    "bart": 512,
    "marian": 512,
    "roberta": 511,
    "prophetnet": 510,
    "whisper": 512,
    "mpt": 512,
    "ctrl": 512,
    "bert": 512,
    "roformer": 512,
}
NO_TABLES = ("llama", "gemma3", "bloom", "mamba", "falcon", "xglm", "rwkv", "chameleon")
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4}


def load(path: Path, **overrides: Any) -> Model:
    given = {"dtypes": ["float32"], "response_prefix": "", "system_prompt": None, **overrides}
    return Model(Settings(model=str(path), **given))


def runs(model_type: str, model: Any, length: int) -> bool:
    inputs = {**text_inputs(model_type, model.config, length=length), "use_cache": False}
    try:
        with torch.inference_mode():
            model(**inputs)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("model_type", TABLES)
def test_tables_of_positions(model_type: str) -> None:
    model = tiny_model(model_type)
    limit = positions_of(model)
    assert limit == TABLES[model_type]
    assert runs(model_type, model, limit)
    assert not runs(model_type, model, limit + 1)


@pytest.mark.parametrize("model_type", NO_TABLES)
def test_positions_without_a_table(model_type: str) -> None:
    model = tiny_model(model_type)
    assert positions_of(model) is None
    assert runs(model_type, model, 520)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A GPT-2 of 100 positions: fewer than the test at loading has tokens."""
    path = tiny.folder(
        tmp_path_factory.mktemp("short"), "gpt2", max_position_embeddings=100, **GPT2
    )
    return load(path, max_response_length=10)


def test_a_prompt_that_is_too_long(short: Model) -> None:
    frame = len(short.encode_rows([""])[0])
    fits = "x" * (100 - frame)
    assert short.get_residuals([fits]).isfinite().all()
    for call in (short.get_residuals, short.get_logits, short.get_responses):
        with pytest.raises(PromptError, match=r"'x{60} \.\.\.' takes 101 tokens"):
            call([fits + "x"])


def test_a_reply_that_is_too_long(short: Model) -> None:
    frame = len(short.encode_rows([""])[0])
    assert short.get_reply_ids(["x" * (90 - frame)], 10)
    with pytest.raises(
        PromptError, match=r"91 tokens and 10 for the reply.*100 positions"
    ) as error:
        short.get_reply_ids(["x" * (91 - frame)], 10)
    assert "max_response_length" in str(error.value)


def test_a_chat_that_is_too_long(short: Model) -> None:
    said = [{"role": "user", "content": "y" * 200}]
    with pytest.raises(PromptError, match="positions"):
        next(short.stream_reply(said))
    said[0]["content"] = "y"
    assert len(list(short.stream_reply(said))) > 0


def test_texts_are_cut_to_the_positions(short: Model) -> None:
    assert reading(short, ["z" * 300], 1000).tokens.tolist() == [99]


def add_token(folder: Path, token: str, **roles: str) -> Path:
    """Add a token to the tokenizer without resizing the embeddings, as people do."""
    tokenizer = tiny.tokenizer()
    added: dict[str, Any] = {"additional_special_tokens": [token]}
    tokenizer.add_special_tokens(roles or added)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_pad_token_without_an_embedding(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path)
    before = load(folder)
    add_token(folder, "", pad_token="[PAD]")
    model = load(folder)
    assert model.tokenizer.pad_token == "<|im_end|>"
    assert model.remarks == (
        "The pad token '[PAD]' (id 259) has no embedding: padding is with '<|im_end|>' instead",
    )
    prompts = ["a", "a much longer prompt"]
    torch.testing.assert_close(model.get_logits(prompts), before.get_logits(prompts))
    assert model.get_responses(prompts) == before.get_responses(prompts)


def test_no_token_to_pad_with(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path)
    add_token(folder, "", pad_token="[PAD]")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("eos_token", "bos_token", "unk_token"):
        config.pop(name, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"'\[PAD\]' has the id 259"):
        load(folder)


def test_a_token_of_the_template_without_an_embedding(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path)
    tokenizer = tiny.tokenizer(tiny.CHAT_TEMPLATE.replace("<|im_start|>assistant", "<|bot|>"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|bot|>"]})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"'<\|bot\|>' the id 259, .* ids 0 to 258") as error:
        load(folder)
    assert "resize_token_embeddings" in str(error.value)


def test_a_token_of_a_prompt_without_an_embedding(tmp_path: Path) -> None:
    model = load(add_token(tiny.folder(tmp_path), "<|tool|>"))
    assert model.get_logits(["x"]).isfinite().all()
    for call in (model.get_logits, model.get_responses, model.get_residuals):
        with pytest.raises(ModelError, match=r"'<\|tool\|>' the id 259"):
            call(["x", "a <|tool|>"])
    with pytest.raises(ModelError, match=r"<\|tool\|>"):
        next(model.stream_reply([{"role": "user", "content": "<|tool|>"}]))
    with pytest.raises(ModelError, match=r"<\|tool\|>"):
        reading(model, ["a <|tool|>"], 100)


def test_a_bos_without_an_embedding(tmp_path: Path) -> None:
    folder = add_token(tiny.folder(tmp_path), "", bos_token="<s>")
    model = load(folder)  # the template does not write it, nor does the tokenizer add it
    assert model.get_logits(["x"]).isfinite().all()


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, vocab_size=100)
    with pytest.raises(ModelError, match="ids 0 to 99 only"):
        load(folder)


def test_an_unreachable_end_token_is_no_error(tmp_path: Path) -> None:
    model = load(add_token(tiny.folder(tmp_path), "", eos_token="</s>"))
    assert len(model.get_reply_ids(["x"], 5)[0]) == 5


def test_limits_are_plain_data(short: Model) -> None:
    """The largest id and the last position are still within."""
    limits = replace(short.limits, ids=10, positions=3)
    limits.check_ids([[9], []], short.tokenizer)
    limits.check_lengths([[1, 2], [1]], ["a", "b"], 1)
    with pytest.raises(ModelError):
        limits.check_ids([[10]], short.tokenizer)
    with pytest.raises(PromptError):
        limits.check_lengths([[1, 2], [1]], ["a", "b"], 2)


@pytest.mark.parametrize("token", [259, 99999])
def test_a_pad_token_of_the_configuration_without_an_embedding(tmp_path: Path, token: int) -> None:
    """The tokenizer's pad token is the one that pads."""
    folder = tiny.folder(tmp_path)
    before = load(folder).get_logits(["Why?"])
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token_id": token}))
    assert torch.equal(load(folder).get_logits(["Why?"]), before)
