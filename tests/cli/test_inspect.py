"""`heretic inspect`: what is edited, from the configuration alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tests.support import tiny
from tests.support.zoo import randomise, text_inputs, tiny_config, tiny_model
from transformers import DynamicCache

from heretic.architectures import find_writers, resolve, resolver
from heretic.architectures.table import WRITERS
from heretic.cli.commands.inspect import ranges
from heretic.cli.main import heretic
from heretic.errors import ModelError, UnsupportedModelError
from heretic.model import loading
from heretic.model.description import BYTES, Description, describe, norms_after
from heretic.model.generation import cache_argument
from heretic.model.source import ModelSource


def described(folder: Path, residual_writers: Sequence[str] = ()) -> Description:
    """What is known of a model in a folder."""
    source = ModelSource(model=str(folder), model_commit=None, trust_remote_code=False)
    return describe(source, residual_writers)


def configured(path: Path, model_type: str) -> Path:
    """A folder with a configuration and nothing else."""
    tiny_config(model_type).save_pretrained(path)
    return path


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "gpt_oss", "jamba", "llava", "gpt2"])
def test_writers_are_those_of_the_model(model_type: str, tmp_path: Path) -> None:
    found = described(configured(tmp_path, model_type))
    model = tiny_model(model_type)
    assert found.class_name == type(model).__name__
    assert found.parameters == sum(p.numel() for p in model.parameters())
    state = model.state_dict()
    for row in found.writers:
        for layer in row.layers:
            path = f"{found.layers}.{layer}.{row.path}"
            weight = state[path] if row.experts else state[f"{path}.weight"]
            shape = tuple(weight.shape[-2:])
            assert row.shape == (shape[::-1] if row.transposed else shape)
            assert row.shape[0] == found.hidden_size
            assert row.experts == (len(weight) if weight.ndim == 3 else 0)
    covered = {layer for row in found.writers for layer in row.layers}
    assert covered == set(range(found.n_layers))


@pytest.mark.parametrize(
    "model_type", ["llama", "jamba", "falcon_h1", "qwen3_next", "nemotron_h", "zamba2", "lfm2"]
)
def test_what_a_row_keeps_is_what_its_cache_holds(model_type: str, tmp_path: Path) -> None:
    """Keys and values only of layers that attend, and the states of those that carry some."""
    found = described(configured(tmp_path, model_type))
    model = tiny_model(model_type)
    inputs = text_inputs(model_type, model.config, batch=1)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(**{**inputs, "use_cache": True, str(cache_argument(model)): cache})
    tokens = inputs["input_ids"].shape[1]
    kept, carried = 0, 0
    for layer in cache.layers:
        for name in ("keys", "values"):
            kept += getattr(layer, name).numel() if getattr(layer, name, None) is not None else 0
        for name in ("conv_states", "recurrent_states"):
            states = getattr(layer, name, {}).values()
            carried += sum(one.numel() * one.element_size() for one in states if one is not None)
    assert found.cache_bytes_per_token == BYTES * kept / tokens
    assert found.carried_bytes == carried
    assert found.sizes(BYTES).carried == carried


def test_the_vision_tower_is_left_alone(tmp_path: Path) -> None:
    found = described(configured(tmp_path, "llava"))
    assert "model.vision_tower" in dict(found.left_out)
    assert "model.language_model.embed_tokens" in dict(found.left_out)


def test_programs_get_json(tmp_path: Path) -> None:
    folder = configured(tmp_path, "mixtral")
    result = CliRunner().invoke(heretic, ["inspect", str(folder), "--json"])
    data = json.loads(result.output)
    assert data["model_type"] == "mixtral"
    assert {row["component"] for row in data["writers"]} == {"attn.o_proj", "mlp.down_proj"}
    assert all(row["edit"] for row in data["writers"])


def test_people_get_a_table(tmp_path: Path) -> None:
    folder = configured(tmp_path, "mixtral")
    text = CliRunner(env={"COLUMNS": "160"}).invoke(heretic, ["inspect", str(folder)]).output
    assert "MixtralForCausalLM (mixtral)" in text
    assert "4 x (32 x 48)" in text
    assert "mlp.gate" in text


def test_what_cannot_be_edited_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="hash at random"):
        described(configured(tmp_path / "r", "reformer"))
    with pytest.raises(ModelError, match="could not be loaded"):
        described(tmp_path / "nothing")


def test_writers_named_by_hand_show(tmp_path: Path) -> None:
    path = configured(tmp_path, "llama")
    found = described(path, ["mlp.up_proj"])
    assert "mlp.up_proj" in [row.path for row in found.writers]


@pytest.mark.parametrize(
    "model_type", ["llama", "gemma2", "gemma3", "olmo2", "glm4", "qwen3_moe", "bloom", "mpt"]
)
def test_norms_that_follow_writers_show_without_weights(model_type: str, tmp_path: Path) -> None:
    found = described(configured(tmp_path, model_type))
    model = tiny_model(model_type)
    inputs = text_inputs(model_type, model.config)
    structure = resolve(model, lambda: model(**inputs, use_cache=False))
    prefix = structure.path
    measured = {
        (w.layer, w.parameter_name.removeprefix(f"{prefix}.{w.layer}.").removesuffix(".weight"))
        for w in structure.writers
        if w.gains is not None
    }
    assert {(i, row.path) for row in found.writers if row.norm for i in row.layers} == measured
    assert all(row.norm is not None for row in found.writers)
    modules = dict(model.named_modules())
    for row in found.writers:
        for layer in row.layers:
            assert not row.norm or f"{prefix}.{layer}.{row.norm}" in modules


def test_what_needs_numbers_is_not_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class LooksAtNumbers(type(tiny_model("llama"))):  # type: ignore[misc]
        def forward(self, *args: object, **kwargs: object) -> object:
            if self.lm_head.weight.sum().item() > 0:
                raise AssertionError
            return super().forward(*args, **kwargs)

    folder = configured(tmp_path, "llama")
    with torch.device("meta"):
        model = LooksAtNumbers(tiny_config("llama")).eval()
    assert norms_after(model, find_writers(model)) is None
    monkeypatch.setattr(loading, "skeleton", lambda settings: model)
    text = invoked(folder)
    assert "Without weights it is not known" in text
    assert "Loading the model shows the rest" in text


def invoked(folder: Path, *options: str) -> str:
    result = CliRunner(env={"COLUMNS": "180"}).invoke(heretic, ["inspect", str(folder), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stdout


def test_weights_show_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, "gemma2", head_dim=8)
    model = tiny.model("gemma2", head_dim=8)
    randomise(model, 0)  # norms too, which begin as all alike
    model.save_pretrained(folder)
    without = invoked(folder)
    assert "--weights loads them" in without
    assert "post_attention_layernorm" in without
    kept = {
        name: tuple(path for path in paths if path != "mlp.down_proj")
        for name, paths in WRITERS.items()
    }
    monkeypatch.setattr(resolver, "WRITERS", kept)
    resolver._patterns.cache_clear()
    try:
        data = json.loads(invoked(folder, "--weights", "--json", "--dtypes", "float32"))
        text = invoked(folder, "--weights", "--dtypes", "float32")
    finally:
        resolver._patterns.cache_clear()
    assert data["verified"] is True
    assert data["discovered"] == ["mlp.down_proj (taken for mlp.down_proj, in 3 layers)"]
    assert {row["norm"] for row in data["writers"]} == {"gains measured"}
    assert "mlp.down_proj (taken for mlp.down_proj, in 3 layers)" in text
    assert "no writer is missing" in text


def test_layers_are_told_briefly() -> None:
    assert ranges([0, 1, 2, 3]) == "0-3"
    assert ranges([3, 7, 11]) == "3-11 by 4"
    assert ranges([0, 1, 4]) == "0-1, 4"
    assert ranges([5]) == "5"


def test_what_memory_a_search_needs_is_told(tmp_path: Path) -> None:
    folder = str(configured(tmp_path, "llama"))
    shown = CliRunner().invoke(heretic, ["inspect", folder, "--memory", "24"])
    assert shown.exit_code == 0
    assert "A search on an accelerator with 24 GB needs about" in shown.output
    assert "to prompts of 256" in shown.output
    long, short = (
        json.loads(invoked(Path(folder), "--memory", "24", "--prompt-tokens", tokens, "--json"))
        for tokens in ("256", "60")
    )
    assert long["memory"]["columns"] - short["memory"]["columns"] == 256 - 60
    assert short["memory"]["total"] > short["memory"]["weights"]


def test_what_does_not_fit_is_told_with_what_to_do(tmp_path: Path) -> None:
    folder = str(configured(tmp_path, "llama"))
    shown = CliRunner().invoke(heretic, ["inspect", folder, "--memory", "0.0001"])
    assert shown.exit_code == 0
    assert "more than there is. Set quantization" in shown.output


def test_quantised_weights_need_less(tmp_path: Path) -> None:
    found = described(configured(tmp_path, "llama"))
    whole, eight, four = (found.sizes(2, bits).weights for bits in (0, 8, 4))
    assert whole == found.weight_bytes
    assert whole - eight == found.linear
    assert eight - four == found.linear // 2
