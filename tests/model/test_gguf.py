"""GGUF files as models: dequantised, edited and saved like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tests.support import export_case, tiny, tiny_gguf

from heretic.cli.main import heretic
from heretic.cli.menu.answers import default_directory
from heretic.config import Settings
from heretic.config.presets import model_facts
from heretic.errors import ModelError, SettingsError, UnsupportedModelError
from heretic.export import saving
from heretic.export.documents import card
from heretic.model import Model
from heretic.system.adapters import find_adapter, model_identity
from heretic.system.hub import base_folder, gguf_parts, is_local, repository_of

PROMPTS = ["Name two things.", "Why is the moon so bright?"]


@pytest.fixture(scope="module")
def original() -> Any:
    return tiny_gguf.model().requires_grad_(False)


@pytest.fixture(scope="module")
def plain(original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32, so that nothing is lost."""
    return tiny_gguf.write(tmp_path_factory.mktemp("plain") / "tiny.gguf", original)


@pytest.fixture(scope="module")
def packed(original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    return tiny_gguf.write(folder / "tiny-Q8_0.gguf", original, quantised=True)


def test_a_file_is_the_model_it_was_made_from(original: Any, plain: Path, packed: Path):
    model = export_case.load(plain)
    ids = torch.tensor([model.tokenizer("Hello, world!")["input_ids"]])
    assert torch.equal(ids[0], torch.tensor(tiny.tokenizer()("Hello, world!")["input_ids"]))
    expected = original(input_ids=ids).logits
    assert torch.allclose(model.model(input_ids=ids).logits, expected, atol=1e-4)
    assert model.renderer.has_template
    near = export_case.load(packed).model(input_ids=ids).logits
    assert not torch.equal(near, expected)
    assert torch.cosine_similarity(near, expected, dim=-1).min() > 0.99


@pytest.mark.parametrize("size", [60, 200, 5000, -40])
def test_a_file_that_is_cut_off(plain: Path, tmp_path: Path, size: int):
    file = tmp_path / "cut.gguf"
    file.write_bytes(plain.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"cut\.gguf is not a whole GGUF file.*Download it again"):
        export_case.load(file)


def test_it_is_saved_as_an_ordinary_folder(packed: Path, tmp_path: Path):
    model = export_case.load(packed)
    choice = export_case.request(model.settings)
    saved = saving.save(model, choice, tmp_path / "saved", strategy="merge")
    config = json.loads((saved / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["rms_norm_eps"] == 1e-6
    assert not list(saved.glob("*.gguf"))
    assert list(saved.glob("*.safetensors"))
    again = export_case.load(saved)
    with model.edited(choice.trial.plan, choice.directions):
        edited = model.get_logits_batched(PROMPTS)
    assert torch.allclose(again.get_logits_batched(PROMPTS), edited, atol=1e-4)
    assert not torch.allclose(model.get_logits_batched(PROMPTS), edited, atol=1e-2)
    assert again.tokenizer.chat_template == model.tokenizer.chat_template


def test_an_adapter_names_the_file(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(packed.parent)
    model = export_case.load(Path(packed.name))
    saved = saving.save(
        model, export_case.request(model.settings), tmp_path / "a", strategy="adapter"
    )
    adapter = find_adapter(str(saved))
    assert adapter is not None
    assert (adapter.base, adapter.base_revision) == (str(packed), None)


def test_a_file_of_the_same_name_here_is_not_taken(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = tiny.model("llama", seed=1, **tiny_gguf.SIZES)
    tiny_gguf.write(tmp_path / plain.name, other)
    monkeypatch.chdir(tmp_path)
    weight = export_case.load(plain).model.lm_head.weight
    here = export_case.load(Path(plain.name)).model.lm_head.weight
    assert torch.equal(here, other.lm_head.weight)
    assert not torch.equal(here, weight)


def test_inspect_reads_the_file(packed: Path):
    result = CliRunner().invoke(heretic, ["inspect", str(packed), "--json"])
    data = json.loads(result.stdout)
    assert (data["model_type"], data["n_layers"], data["hidden_size"]) == ("llama", 3, 32)
    assert {row["path"] for row in data["writers"]} == {"self_attn.o_proj", "mlp.down_proj"}
    assert data["weights_here"] is True


def test_what_cannot_be_is_said(original: Any, packed: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="loads dequantised; quantization is bnb_4bit"):
        export_case.load(packed, quantization="bnb_4bit")
    with pytest.raises(ModelError, match=r"There is no file .*nothing\.gguf"):
        export_case.load(tmp_path / "nothing.gguf")
    unknown = tiny_gguf.write(tmp_path / "unknown.gguf", original, architecture="plamo")
    with pytest.raises(UnsupportedModelError, match="plamo"):
        export_case.load(unknown)


def test_names_of_files(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert gguf_parts(str(plain)) == (str(plain.parent), "tiny.gguf")
    assert gguf_parts("x/y.gguf") == ("x", "y.gguf")
    assert gguf_parts("org/name/sub/y.GGUF") == ("org/name", "sub/y.GGUF")
    assert gguf_parts("org/name") is None
    assert not is_local("org/name/y.gguf")
    assert repository_of("org/name/y.gguf") == "org/name"
    assert repository_of("org/name") == "org/name"
    (tmp_path / "org" / "name").mkdir(parents=True)
    shutil.copy(plain, tmp_path / "org" / "name" / "y.gguf")
    assert is_local("org/name/y.gguf")
    assert gguf_parts("org/name/y.gguf") == ("org/name", "y.gguf")
    assert model_identity("org/name/y.gguf") == model_identity(str(plain))
    assert model_identity(str(plain)).startswith("sha256:")
    assert model_identity("a/b/c.gguf", "0" * 40) == f"a/b/c.gguf@{'0' * 40}"
    assert default_directory("a/b/c.gguf") == Path("c-heretic")


def test_cards_link_to_the_repository():
    assert card.model_link("a/b/c.gguf") == "[a/b/c.gguf](https://huggingface.co/a/b)"
    assert "base_model: a/b\n" in card.card_metadata("a/b/c.gguf", "merge", {})
    assert base_folder("a/b/c.gguf") is None


def test_the_architecture_chooses_the_preset(original: Any, plain: Path, tmp_path: Path):
    assert model_facts(str(plain), None).types == ("llama",)
    gemma = tiny_gguf.write(tmp_path / "g.gguf", original, architecture="gemma2")
    assert Settings(model=str(gemma)).dtypes == ("auto", "bfloat16", "float32")
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    assert model_facts(str(tmp_path / "damaged.gguf"), None).types == ()


def test_auto_is_half_precision_where_the_processor_has_it(packed: Path):
    model = Model(export_case.settings(packed, dtypes=["auto"]))
    from heretic.model.loading import resolve_dtype

    assert model.dtype == resolve_dtype("auto", torch.device("cpu"))
