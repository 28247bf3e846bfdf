"""A model whose files lack weights is refused; nothing is made up."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support import tiny
from tests.support.zoo import tiny_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from heretic.config import Settings
from heretic.errors import ModelError
from heretic.judges.local import ClassifierOptions, LocalJudge
from heretic.judges.records import Item
from heretic.model import Model
from heretic.model.completeness import check_complete, summary

WEIGHTS = "model.safetensors"


def load(path: Path) -> Model:
    return Model(Settings(model=str(path), dtypes=["float32"], response_prefix=""))


def rename(folder: Path, name: Callable[[str], str | None]) -> Path:
    """Write the weights of a folder again under other names; None leaves a tensor out."""
    old = load_file(folder / WEIGHTS)
    new = {name(key): tensor for key, tensor in old.items()}
    save_file({k: v for k, v in new.items() if k}, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def configure(folder: Path, **values: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_a_prefix_on_every_name(tmp_path: Path, prefix: str) -> None:
    folder = rename(tiny.folder(tmp_path), lambda key: prefix + key)
    with pytest.raises(ModelError, match=r"lack every weight: lm_head\.weight, model") as error:
        load(folder)
    assert f"begin with `{prefix}`" in str(error.value)


def test_weights_with_an_adapter_attached(tmp_path: Path) -> None:
    folder = rename(
        tiny.folder(tmp_path),
        lambda key: "base_model.model." + key.replace("_proj.weight", "_proj.base_layer.weight"),
    )
    with pytest.raises(ModelError, match="merge_and_unload"):
        load(folder)


@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv", "SCB"])
def test_quantised_weights_whose_scales_are_not_read(tmp_path: Path, scale: str) -> None:
    """Their numbers alone are another model, though none of them is missing."""
    folder = tiny.folder(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    scales = {
        key.replace("weight", scale): torch.ones(1)
        for key in tensors
        if key.endswith("_proj.weight")
    }
    save_file({**tensors, **scales}, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"does not say how.*{scale}.*quantization_config"):
        load(folder)


def test_an_output_head_that_is_not_tied(tmp_path: Path) -> None:
    folder = rename(tiny.folder(tmp_path), lambda key: None if key == "lm_head.weight" else key)
    with pytest.raises(ModelError, match=r"lack 1 of \d+ weights: lm_head\.weight\. "):
        load(folder)
    assert load(configure(folder, tie_word_embeddings=True)).remarks == ()


def test_fewer_layers_than_the_configuration_promises(tmp_path: Path) -> None:
    folder = configure(tiny.folder(tmp_path), num_hidden_layers=5)
    with pytest.raises(ModelError, match=r"model\.layers\.3-4\.input_layernorm\.weight") as error:
        load(folder)
    assert "config.json that belongs" in str(error.value)


@pytest.mark.parametrize("lacking", ["bias", "weight"])
def test_single_weights(tmp_path: Path, lacking: str) -> None:
    folder = tiny.folder(tmp_path, attention_bias=True)
    name = f"model.layers.1.self_attn.o_proj.{lacking}"
    rename(folder, lambda key: None if key == name else key)
    with pytest.raises(ModelError, match=f"lack 1 of .*: {name}"):
        load(folder)


def test_other_shapes_than_the_configuration_promises(tmp_path: Path) -> None:
    folder = configure(tiny.folder(tmp_path), intermediate_size=64)
    with pytest.raises(ModelError, match=r"mlp\.down_proj\.weight is \[32, 48\] in .* \[32, 64\]"):
        load(folder)


def test_a_missing_expert(tmp_path: Path) -> None:
    folder = tmp_path / "experts"
    tiny_model("mixtral").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    rename(folder, lambda key: None if ".layers.1." in key and "experts.2.w1" in key else key)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.") as error:
        load(folder)
    assert "dtype" not in str(error.value)


@pytest.mark.parametrize("tied", [False, True])
def test_the_files_of_a_classifier(tmp_path: Path, tied: bool) -> None:
    config = AutoConfig.for_model("llama", **tiny.SIZES, tie_word_embeddings=tied)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="LlamaForSequenceClassification") as error:
        load(tmp_path)
    assert ("score.weight" if tied else "lm_head.weight") in str(error.value)


def test_a_base_model_without_head(tmp_path: Path) -> None:
    tiny.model().model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load(tmp_path)


def test_shards(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert load(folder).remarks == ()
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    gone = next(iter(content["weight_map"]))
    shard = folder / content["weight_map"].pop(gone)
    index.write_text(json.dumps(content))
    tensors = load_file(shard)
    del tensors[gone]
    tensors["x"] = torch.zeros(1)
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lack 1 of .*: {gone}"):
        load(folder)


def test_what_nothing_reads_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny.folder(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    extra = {f"mtp.{n}.weight": torch.zeros(2) for n in range(3)}
    save_file({**tensors, **extra}, folder / WEIGHTS, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        model = load(folder)
    assert model.remarks == (
        "3 tensors in the files belong to nothing in the model: mtp.0-2.weight",
    )
    assert "LOAD REPORT" not in caplog.text


@pytest.mark.parametrize("family", ["gpt2", "bart", "deepseek_v3", "qwen2_moe", "mamba", "gemma3"])
def test_whole_models_are_complete(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    again, found = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert check_complete(again, found, family) == ()


def test_a_judge_without_its_head(tmp_path: Path) -> None:
    """Random verdicts would be worse than none."""
    config = AutoConfig.for_model("llama", **tiny.SIZES)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    rename(tmp_path, lambda key: None if key.startswith("score") else key)
    judge = LocalJudge(ClassifierOptions(model=str(tmp_path), counts=("LABEL_1",)), "judge")
    with pytest.raises(Exception, match=r"\[scorer\.judge\].*score\.weight"):
        judge.verdicts([Item("a", "b")])


def test_names_in_short() -> None:
    names = [f"a.{layer}.b.{expert}.w" for layer in range(3) for expert in (1, 4)]
    assert summary(names) == "a.0-2.b.1-4.w"
    assert summary(["b", "a.3.c"]) == "b, a.3.c"
    assert summary(f"{letter}.w" for letter in "abcdefg").endswith("d.w and 3 more")
