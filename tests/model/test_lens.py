"""Logit lens: what a direction adds to the logits, with whatever lies between layer and head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import export_case, tiny, zoo
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from heretic.errors import UnsupportedModelError
from heretic.model import Model
from heretic.model.lens import Readout, measured_readout, token_logits
from heretic.model.words import token_texts


def model_of(path: Path, model_type: str) -> Model:
    """Its gains and biases are random."""
    return Model(export_case.settings(zoo.tiny_folder(path, model_type)))


def direction(width: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model_type", "centers"),
    [
        ("llama", False),
        ("gemma", False),  # its gain is 1 + weight
        ("gemma2", False),  # and its logits are capped
        ("gpt2", True),
        ("cohere", True),  # its logits are scaled
        ("granite", False),
        ("mamba", False),
        ("qwen3_next", False),
        ("olmo", True),  # no gain at all
    ],
)
def test_a_residual_far_along_the_direction_has_these_logits(
    tmp_path: Path, model_type: str, centers: bool
):
    model = model_of(tmp_path, model_type)
    vectors = torch.zeros(model.n_layers + 1, model.hidden_size)
    vectors[-1] = direction(model.hidden_size)
    expected = token_logits(model, vectors[-1:])[0]
    with model.steered(vectors, 1e5):
        toward = model.get_logits(["Hi"])[0]
    with model.steered(vectors, -1e5):
        away = model.get_logits(["Hi"])[0]
    found = (toward - away)[: len(expected)] / 2  # without biases
    assert measured_readout(model).centers is centers
    assert torch.equal(found.argsort()[:20], expected.argsort()[:20])
    assert functional.cosine_similarity(found, expected, dim=0) > 0.999


def test_the_gain_is_the_norms_own(tmp_path: Path):
    llama = model_of(tmp_path / "llama", "llama")
    gain = llama.model.model.norm.weight
    assert torch.allclose(measured_readout(llama).gain, gain, atol=1e-4)
    gemma = model_of(tmp_path / "gemma", "gemma")
    weight = gemma.model.model.norm.weight
    assert torch.allclose(measured_readout(gemma).gain, 1 + weight, atol=1e-4)
    assert not torch.allclose(measured_readout(gemma).gain, weight, atol=0.5)


def test_an_odd_width_is_measured_too(tmp_path: Path):
    sizes: dict[str, Any] = {
        "hidden_size": 33,
        "head_dim": 8,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    }
    model = Model(export_case.settings(tiny.folder(tmp_path, **sizes)))
    gain = torch.rand(33, generator=torch.Generator().manual_seed(2)) + 0.5
    model.model.model.norm.weight.data.copy_(gain)
    assert torch.allclose(measured_readout(model).gain, gain, atol=1e-4)


def test_tokens_that_the_tokenizer_lacks_are_left_out(tmp_path: Path):
    model = Model(export_case.settings(tiny.folder(tmp_path, vocab_size=300)))
    found = token_logits(model, direction(model.hidden_size).unsqueeze(0))
    assert found.shape == (1, len(model.tokenizer)) == (1, 259)
    assert found.dtype == torch.float32


def test_what_is_no_norm_is_refused(tmp_path: Path):
    model = model_of(tmp_path, "bert")  # a dense layer lies before its head
    with pytest.raises(UnsupportedModelError, match="more than a norm"):
        measured_readout(model)


def test_without_a_head_it_is_refused_and_no_hook_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = Model(export_case.settings(tiny.folder(tmp_path)))
    before = model.get_logits(["Hi"])
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "get_output_embeddings", lambda: None)
        with pytest.raises(UnsupportedModelError, match="no output head"):
            measured_readout(model)
    assert torch.equal(model.get_logits(["Hi"]), before)


def test_another_width_is_refused(tmp_path: Path):
    model = Model(export_case.settings(tiny.folder(tmp_path)))
    with pytest.raises(ValueError, match="do not fit a model of width 32"):
        token_logits(model, torch.ones(1, 31))


def test_the_mean_is_subtracted_before_the_gain():
    readout = Readout(torch.tensor([1.0, 2.0]), centers=True)
    assert torch.equal(readout.apply(torch.tensor([3.0, 1.0])), torch.tensor([1.0, -2.0]))


def test_tokens_keep_the_space_that_they_begin_with():
    vocabulary = {"▁a": 0, "a": 1, "▁sorry": 2, "sorry": 3, "<unk>": 4, "▁": 5}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    raw.decoder = decoders.Metaspace()
    found = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    assert token_texts(found, [2, 3]) == [" sorry", "sorry"]


def test_parts_of_characters_are_given_as_the_tokenizer_spells_them():
    found = tiny.tokenizer()
    ids = found("aé", add_special_tokens=False)["input_ids"]
    texts = token_texts(found, ids)
    assert texts[0] == "a"
    assert texts[1:] == ["Ã", "©"]  # bytes of é
