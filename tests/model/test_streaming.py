"""Streamed replies: whatever stands in `generation_config.json`, and errors on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import tiny

from heretic.config import Settings
from heretic.errors import ModelError, PromptError
from heretic.events import Event, Notice
from heretic.model import Model

HELLO = [{"role": "user", "content": "Hello"}]


class Recorder:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, Notice) and event.level == "warning":
            self.warnings.append(event.text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def greedy(folder: Path) -> str:
    model = Model(Settings(model=str(folder), dtypes=["float32"], response_prefix=""))
    return model.get_responses([HELLO[0]["content"]], max_new_tokens=8)[0]


def with_config(folder: Path, **config: Any) -> tuple[Model, Recorder]:
    file = folder / "generation_config.json"
    known = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    file.write_text(json.dumps({**known, **config}))
    recorder = Recorder()
    settings = Settings(
        model=str(folder),
        dtypes=["float32"],
        response_prefix="",
        system_prompt="You are a helpful assistant.",
    )
    return Model(settings, recorder), recorder


def reply(model: Model, tokens: int = 8) -> str:
    messages = model.get_chat(HELLO[0]["content"])
    return "".join(model.stream_reply(messages, tokens))


LEFT_OUT: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 4},
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "several replies": {"num_return_sequences": 3},
    "beams and replies": {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "layers compared": {"dola_layers": "low"},
    "words forced": {"force_words_ids": [[7]], "num_beams": 2},
    "guidance": {"guidance_scale": 1.5},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 1},
    "token healing": {"token_healing": True},
    "a static cache": {"cache_implementation": "static"},
    "lengths": {"max_length": 3, "min_length": 2, "max_time": 1e-9},
    "a record of everything": {"return_dict_in_generate": True, "output_scores": True},
    "no temperature": {"do_sample": True, "temperature": 0.0},
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_cannot_be_streamed_is_left_out(kind: str, folder: Path, greedy: str):
    model, recorder = with_config(folder, **LEFT_OUT[kind])
    before = model.model.generation_config
    assert reply(model) == greedy
    assert not any("cannot be followed" in warning for warning in recorder.warnings)
    assert model.model.generation_config is before


def test_a_file_that_transformers_refuses_does_not_stop_the_model(folder: Path, greedy: str):
    model, _ = with_config(folder, num_return_sequences=3, eos_token_id=[2, 7])
    (remark,) = model.remarks
    assert remark.startswith("generation_config.json cannot be used (Greedy methods")
    assert model.model.generation_config.eos_token_id == [2, 7]
    assert reply(model)


def test_of_a_refused_file_only_ids_that_can_be_used_count(folder: Path):
    model, _ = with_config(folder, pad_token_id=[], bos_token_id=-1)
    (remark,) = model.remarks
    assert remark.startswith("generation_config.json cannot be used (TypeError")
    assert model.model.generation_config.eos_token_id == 2
    assert model.model.generation_config.pad_token_id is None
    assert reply(model)


@pytest.mark.parametrize(
    "config",
    [
        {"do_sample": True, "top_k": -3},
        {"repetition_penalty": -1.0},
        {"do_sample": True, "min_p": 7},
        {"suppress_tokens": "all"},
        {"stop_strings": 7},
    ],
)
def test_a_configuration_that_cannot_be_followed_gives_a_greedy_reply(
    config: dict[str, Any], folder: Path, greedy: str
):
    model, recorder = with_config(folder, **config)
    assert reply(model) == reply(model) == greedy
    (warning,) = recorder.warnings
    assert "cannot be followed" in warning


def test_stop_strings_end_a_reply(folder: Path, greedy: str):
    model, _ = with_config(folder, stop_strings=[greedy[2]])
    assert reply(model) == greedy[: greedy.index(greedy[2]) + 1]


def test_penalties_and_sampling_are_followed(folder: Path, greedy: str):
    model, recorder = with_config(folder, repetition_penalty=50.0, no_repeat_ngram_size=1)
    assert reply(model) != greedy
    model, _ = with_config(folder, do_sample=True, temperature=50.0, top_k=0)
    assert len({reply(model) for _ in range(4)}) > 1
    assert recorder.warnings == []


def test_scoring_ignores_the_generation_config(tmp_path: Path):
    """Models that `greedy` cannot decode itself are greedy too: no penalties and no beams."""
    path = tiny.folder(tmp_path, "mamba", state_size=4)
    plain, _ = with_config(path)
    before = plain.get_responses(["Hello"], max_new_tokens=12)
    for more in ({"repetition_penalty": 50.0}, {"num_beams": 3}, {"stop_strings": ["a"]}):
        model, _ = with_config(path, **more)
        assert model.get_responses(["Hello"], max_new_tokens=12) == before


def test_a_conversation_that_is_too_long_is_said(folder: Path):
    model, _ = with_config(folder)
    with pytest.raises(PromptError, match=r"takes \d+ tokens, and .* is made for 512.*/reset"):
        next(model.stream_reply([{"role": "user", "content": "word " * 200}]))
    assert reply(model)


def test_a_message_that_the_template_drops_is_said(tmp_path: Path):
    path = tiny.folder(
        tmp_path, chat_template="{% for m in messages %}{{ m.content[:10] }}{% endfor %}"
    )
    model, _ = with_config(path)
    with pytest.raises(PromptError, match="leaves out 'hippopotamus'"):
        next(model.stream_reply([{"role": "user", "content": "Describe a hippopotamus"}]))


def test_running_out_of_memory_is_said(folder: Path):
    model, _ = with_config(folder)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.model.register_forward_pre_hook(full)
    with pytest.raises(ModelError, match=r"Out of memory after \d+ tokens of conversation\. Start"):
        reply(model)
    handle.remove()
    assert reply(model)
