"""llama.cpp's converter, quantiser and runtime on tiny models: what they make is what we meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import convertible, tiny

from heretic.config.settings import Settings
from heretic.errors import ExportError
from heretic.gguf import convert
from heretic.gguf.content import fallbacks, read_content, without_importance
from heretic.gguf.file_types import file_type, file_types, known_types
from heretic.gguf.importance import for_tensors, mean_squares
from heretic.gguf.llama import STEP_TOKENS, LlamaFile
from heretic.gguf.quantise import quantise
from heretic.gguf.score import check_tokens, rendered
from heretic.gguf.staging import check_tokenizer_without_code, converter_copy
from heretic.model.library import LibraryModel
from heretic.model.source import ModelSource
from heretic.prompts import Prompt
from heretic.scorers.kl_divergence import kl_divergence

pytestmark = pytest.mark.demo

PROMPTS = [Prompt(text, "You are a helpful assistant.") for text in tiny.GOOD_PROMPTS]

CANARY = """
import pathlib
from transformers import PreTrainedTokenizerFast
pathlib.Path({place!r}).write_text("ran")
class CanaryTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convertible.folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> LibraryModel:
    settings = Settings(model=str(folder), dtypes=["float32"], response_prefix="", batch_size=4)
    return LibraryModel(settings)


@pytest.fixture(scope="module")
def unquantised(folder: Path) -> Path:
    path = folder.parent / "tiny.gguf"
    with converter_copy(folder, folder.parent) as staged:
        convert.convert_model(staged, path, convert.lossless_type(folder))
    return path


def with_canary(folder: Path, copy: Path) -> Path:
    """A copy of a model whose tokenizer comes with code that writes the file `ran` beside it.

    It names an architecture whose tokenizers the converter loads with remote code switched on.
    """
    shutil.copytree(folder, copy)
    code = CANARY.format(place=str(copy.parent / "ran"))
    (copy / "canary.py").write_text(code, encoding="utf-8")
    config = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoTokenizer": [None, "canary.CanaryTokenizer"]}
    (copy / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return of_architecture(copy, "Glm4ForCausalLM")


def of_architecture(folder: Path, name: str) -> Path:
    """Name another architecture in a model's configuration."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = [name]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


class TestCodeOfOthers:
    @pytest.mark.parametrize("trusted", [False, True])
    def test_runs_only_where_the_user_trusts_it(self, folder: Path, tmp_path: Path, trusted: bool):
        place = with_canary(folder, tmp_path / "tiny")
        with (
            converter_copy(place, tmp_path, trusted=trusted) as staged,
            pytest.raises(ExportError, match=r"<\|user\|>"),  # a token that it looks for afterwards
        ):
            convert.convert_vocabulary(staged, tmp_path / "vocabulary.gguf")
        assert (tmp_path / "ran").exists() == trusted

    def test_a_hidden_key_is_found(self, folder: Path, tmp_path: Path):
        place = with_canary(folder, tmp_path / "tiny")
        path = place / "tokenizer_config.json"
        text = path.read_text(encoding="utf-8").replace("auto_map", "auto\\u005fmap")
        path.write_text(text, encoding="utf-8")
        assert "auto_map" in json.loads(text)
        with converter_copy(place, tmp_path) as staged:
            assert "auto_map" not in json.loads((staged / path.name).read_text(encoding="utf-8"))
            assert not list(staged.glob("*.py"))

    def test_a_tokenizer_that_needs_it_is_refused_first(self, folder: Path, tmp_path: Path):
        place = with_canary(folder, tmp_path / "tiny")
        for name in ("tokenizer.json", "vocab.json", "merges.txt"):
            (place / name).unlink(missing_ok=True)
        source = ModelSource(model=str(place), model_commit=None, trust_remote_code=False)
        with pytest.raises(ExportError, match="works only with code"):
            check_tokenizer_without_code(source)
        assert not (tmp_path / "ran").exists()


class TestWhatTheConverterDoesNotKnow:
    def test_an_architecture(self, folder: Path, tmp_path: Path):
        place = tmp_path / "odd"
        shutil.copytree(folder, place)
        of_architecture(place, "OddForCausalLM")
        with (
            converter_copy(place, tmp_path) as staged,
            pytest.raises(ExportError, match="does not know the architecture OddForCausalLM"),
        ):
            convert.convert_vocabulary(staged, tmp_path / "vocabulary.gguf")

    def test_a_tokenizer(self, tmp_path: Path):
        place = tiny.folder(tmp_path / "odd")
        with (
            converter_copy(place, tmp_path) as staged,
            pytest.raises(ExportError, match="does not know the tokenizer of odd"),
        ):
            convert.convert_vocabulary(staged, tmp_path / "vocabulary.gguf")


class TestRunning:
    def test_logits_are_those_of_torch(self, model: LibraryModel, unquantised: Path):
        sets = rendered(model, PROMPTS, 4)
        with LlamaFile(unquantised) as file:
            found = torch.from_numpy(file.logits(sets.rows))
            alone = file.logits([sets.rows[3]])
        assert kl_divergence(model.get_logits(PROMPTS), found) < 1e-4
        assert np.abs(alone[0] - found[3].numpy()).max() < 1e-2

    def test_a_row_may_be_longer_than_a_step(self, model: LibraryModel, unquantised: Path):
        short = [list(row) for row in rendered(model, PROMPTS[:3], 4).rows]
        rows = [short[0], short[1] + short[2] * 25, short[2]]
        assert len(rows[1]) > STEP_TOKENS
        with LlamaFile(unquantised) as file:
            found = torch.from_numpy(file.logits(rows))
        assert kl_divergence(model.logits_after(rows), found) < 1e-4

    def test_replies_are_those_of_torch(self, model: LibraryModel, unquantised: Path):
        sets = rendered(model, PROMPTS, 6)
        with LlamaFile(unquantised) as file:
            found = file.replies(sets.rows, 6)
            streamed = list(file.stream(sets.rows[0], 6))
        assert found == model.get_reply_ids(PROMPTS, 6)
        assert streamed == found[0]

    def test_a_row_that_is_done_makes_place(self, model: LibraryModel, unquantised: Path):
        rows = rendered(model, PROMPTS, 6).rows * 4  # more than are decoded together
        with LlamaFile(unquantised) as file:
            whole = file.replies(rows, 6)
            short = file.replies(rows, 6, lambda row, reply: len(reply) > row % 5)
        assert [len(reply) for reply in short] == [
            min(len(reply), row % 5 + 1) for row, reply in enumerate(whole)
        ]
        assert all(a == b[: len(a)] for a, b in zip(short, whole, strict=True))

    def test_tokens_are_ours(self, model: LibraryModel, unquantised: Path):
        with LlamaFile(unquantised) as file:
            check_tokens(file, {"good": rendered(model, PROMPTS, 4)})

    def test_other_tokens_are_an_error(self, model: LibraryModel, unquantised: Path):
        found = rendered(model, PROMPTS[:1], 4)
        row = (*found.rows[0][:-2], found.rows[0][-1])
        other = type(found)(found.prompts, found.texts, (row,))
        with (
            LlamaFile(unquantised) as file,
            pytest.raises(ExportError, match="makes other tokens of a prompt"),
        ):
            check_tokens(file, {"good": other})


def direct_mean_squares(model: Any, rows: list[list[int]]) -> np.ndarray[Any, Any]:
    """Mean square of what enters the second layer's queries, from the layer's own norm."""
    total, count = torch.zeros(64, dtype=torch.float64), 0
    for row in rows:
        output = model(torch.tensor([row]), output_hidden_states=True)
        entering = model.model.layers[1].input_layernorm(output.hidden_states[1])[0]
        total += entering.detach().double().square().sum(dim=0)
        count += len(row)
    return (total / count).numpy()


class TestImportance:
    def test_is_the_mean_square_of_inputs(self, model: LibraryModel):
        found = mean_squares(model, PROMPTS)
        direct = direct_mean_squares(model.model, model.encode_rows(PROMPTS))
        np.testing.assert_allclose(found["model.layers.1.self_attn.q_proj"], direct, rtol=1e-4)

    def test_every_matrix_of_a_layer_gets_it(self, model: LibraryModel, unquantised: Path):
        content = read_content(unquantised)
        names = convert.tensor_names(content.architecture, content.blocks)
        found = for_tensors(mean_squares(model, PROMPTS), names)
        assert without_importance(content, found) == ()
        widths = {one.name: one.width for one in content.tensors}
        assert all(len(values) == widths[name] for name, values in found.items())

    def test_the_quantiser_takes_it(self, model: LibraryModel, unquantised: Path, tmp_path: Path):
        content = read_content(unquantised)
        names = convert.tensor_names(content.architecture, content.blocks)
        importance = for_tensors(mean_squares(model, PROMPTS), names)
        kind = file_type("q4_k_m")
        with_it, without = tmp_path / "with.gguf", tmp_path / "without.gguf"
        quantise(unquantised, with_it, kind, importance)
        quantise(unquantised, without, kind)
        assert with_it.read_bytes() != without.read_bytes()
        found = fallbacks(read_content(with_it), kind)
        assert sum(found.values()) > 0  # rows of 64 values, where a block has 256
        down = next(one for one in read_content(with_it).tensors if "ffn_down" in one.name)
        assert down.kind in ("Q4_K", "Q6_K")  # rows of 256


class TestTypes:
    def test_fewer_bits_than_q6_k_want_importance(self):
        wanting = {name for name in ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "f16")
                   if file_type(name).wants_importance}  # fmt: skip
        assert wanting == {"q5_k_m", "q4_k_m", "iq4_xs"}

    def test_names_are_split_and_kept_once(self):
        assert [one.name for one in file_types(["F16,q8_0", "q8_0"])] == ["f16", "q8_0"]

    def test_every_type_that_is_listed_can_be_asked_for(self):
        known = known_types()
        assert {name: file_type(name) for name in known} == known
        bits = [kind.bits for kind in known.values()]
        assert bits == sorted(bits, reverse=True)

    def test_types_that_files_cannot_be_read_of_are_refused(self, monkeypatch: pytest.MonkeyPatch):
        numbers = {"q4_k_m": 15, "q99_0": 99}  # llama.cpp may be newer than the package gguf
        monkeypatch.setattr("heretic.gguf.file_types.file_type_numbers", lambda: numbers)
        with pytest.raises(ExportError, match=r"no GGUF type 'q99_0' here\. There are q4_k_m\."):
            file_types(["q4_k_m,q99_0"])

    def test_an_unknown_one_is_named(self):
        with pytest.raises(ExportError, match="no GGUF type 'q4_k_x'"):
            file_types(["q4_k_x"])
