"""`heretic gguf`: files, scores and documents of a saved model, from one command."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.support import convertible, tiny
from transformers import AutoModelForCausalLM

from heretic.errors import ExportError
from heretic.gguf.convert import lossless_type
from heretic.gguf.file_types import file_types
from heretic.gguf.results import Made, Results
from heretic.gguf.sizes import needed_bytes
from heretic.main import run
from heretic.records.trial import Score

KINDS = "f16,q4_k_m"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts, settings, an original and an edited model."""
    folder = tmp_path_factory.mktemp("gguf")
    tiny.prompt_files(folder)
    own = 'max_response_length = 6\nresponse_prefix = ""\ndtypes = ["float32"]\n'
    (folder / "config.toml").write_text(own + tiny.PROMPT_TABLES, encoding="utf-8")
    convertible.folder(folder / "original")
    convertible.folder(folder / "edited")
    model = AutoModelForCausalLM.from_pretrained(folder / "edited", dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(0.5)
    model.save_pretrained(folder / "edited")
    return folder


def made_by(place: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    monkeypatch.chdir(place)
    assert run(["gguf", "edited", *arguments]) == 0
    found: dict[str, Any] = json.loads(
        (place / "edited-gguf" / "gguf.json").read_text(encoding="utf-8")
    )
    return found


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        return made_by(place, patch, "--types", KINDS, "--against", "original", "--keep-original")


@pytest.mark.demo
class TestWithAnOriginal:
    def test_files_are_there_and_nothing_else(self, place: Path, found: dict[str, Any]):
        names = {path.name for path in (place / "edited-gguf").iterdir()}
        assert names == {
            "Modelfile", "README.md", "SHA256SUMS", "gguf.json", "edited-f16.gguf",
            "edited-q4_k_m.gguf", "edited-original-f16.gguf", "edited-original-q4_k_m.gguf",
        }  # fmt: skip
        assert [row["type"] for row in found["files"]] == ["f16", "q4_k_m"]

    def test_the_originals_files_are_kept_since_that_is_wanted(
        self, place: Path, found: dict[str, Any]
    ):
        assert found["originals"] == ["edited-original-f16.gguf", "edited-original-q4_k_m.gguf"]
        made = place / "edited-gguf"
        files = {path.name: path.stat().st_size for path in made.glob("*.gguf")}
        assert (made / "SHA256SUMS").read_text().count(".gguf") == len(files) == 4
        planned = needed_bytes(
            place / "edited", file_types([KINDS]), lossless_type(place / "edited"),
            original=True, kept=True,
        )  # fmt: skip
        assert sum(files.values()) < planned

    def test_a_modelfile_runs_the_smallest_file_with_the_models_template(
        self, place: Path, found: dict[str, Any]
    ):
        text = (place / "edited-gguf" / "Modelfile").read_text(encoding="utf-8")
        smallest = min(found["files"], key=lambda row: row["size"])["file"]
        assert f"FROM ./{smallest}\n" in text
        assert '"<|im_start|>user\\n"' in text or "<|im_start|>user\\n" in text
        assert 'PARAMETER stop "<|im_end|>"\n' in text
        card = (place / "edited-gguf" / "README.md").read_text(encoding="utf-8")
        assert f"`llama-cli -m {smallest}`" in card
        assert "were not tried" in card

    def test_one_can_chat_with_a_file(
        self,
        place: Path,
        found: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ):
        """llama.cpp's reply to a chat is that to the prompt, which was read while it was scored."""
        monkeypatch.chdir(place / "edited-gguf")
        question = found["prompts"][0]
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n"))
        assert run(["chat", "edited-f16.gguf"]) == 0
        [before, after] = capfd.readouterr().out.split("model:", 1)
        assert "/help for help" in before
        expected = found["files"][0]["replies"][0].split()
        assert after.split()[: len(expected) - 1] == expected[:-1]

    def test_divergence_is_from_the_original(self, found: dict[str, Any]):
        assert found["original"] == "original"
        for row in (found["unquantised"], *found["files"]):
            scores = {score["name"]: score["value"] for score in row["scores"]}
            assert set(scores) == {"refusals", "kl_divergence"}
            assert scores["kl_divergence"] > 0.01
        assert found["conversion_kl"] < 1e-4
        assert found["files"][0]["kl_from_unquantised"] < 1e-3

    def test_only_few_bits_get_importance(self, found: dict[str, Any]):
        assert [row["importance_matrix"] for row in found["files"]] == [False, True]
        assert found["files"][1]["without_importance"] == []
        assert sum(found["files"][1]["fallbacks"].values()) > 0

    def test_the_card_shows_it(self, place: Path, found: dict[str, Any]):
        card = (place / "edited-gguf" / "README.md").read_text(encoding="utf-8")
        assert "## GGUF files" in card
        assert "library_name: gguf" in card
        assert all(row["file"] in card for row in found["files"])
        assert all(text in card for text in found["survival"])

    def test_they_are_replaced_by_themselves_only(
        self, place: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ):
        shutil.copytree(place / "edited-gguf", place / "other")
        (place / "other" / "mine.txt").write_text("mine", encoding="utf-8")
        monkeypatch.chdir(place)
        with pytest.raises(ExportError, match="files that Heretic did not make there"):
            run(["gguf", "edited", "--types", "f16", "-o", "other"])
        assert (place / "other" / "mine.txt").is_file()
        again = made_by(place, monkeypatch, "--types", "q8_0")
        assert [row["type"] for row in again["files"]] == ["q8_0"]
        assert again["original"] is None
        assert again["kl_divergence_from"] == "the unquantised folder"
        scores = {score["name"]: score["value"] for score in again["files"][0]["scores"]}
        assert 0 < scores["kl_divergence"] < 0.01


def adapter(place: Path, name: str, **options: Any) -> Path:
    """An adapter of rank 2 of the original, far enough from nothing to change replies."""
    model = AutoModelForCausalLM.from_pretrained(place / "original", dtype=torch.float32)
    torch.manual_seed(1)
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["o_proj", "down_proj"], init_lora_weights=False,
        task_type="CAUSAL_LM", **options,
    )  # fmt: skip
    get_peft_model(model, config).save_pretrained(str(place / name))
    convertible.tokenizer().save_pretrained(place / name)
    return place / name


@pytest.mark.demo
class TestAdapters:
    def test_a_lora_is_exact(self, place: Path, monkeypatch: pytest.MonkeyPatch):
        adapter(place, "lora")
        monkeypatch.chdir(place)
        assert run(["gguf", "lora"]) == 0
        names = {path.name for path in (place / "lora-gguf").iterdir()}
        assert names == {"README.md", "SHA256SUMS", "gguf.json", "lora-lora.gguf"}
        found = json.loads((place / "lora-gguf" / "gguf.json").read_text(encoding="utf-8"))
        assert found["conversion_kl"] < 1e-4
        [row] = found["files"]
        scores = {score["name"]: score["value"] for score in row["scores"]}
        assert scores["kl_divergence"] > 0.01

    @pytest.mark.parametrize("option", ["use_dora", "use_rslora"])
    def test_one_that_would_be_another_edit_is_refused(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, option: str
    ):
        adapter(place, option, **{option: True})
        monkeypatch.chdir(place)
        with pytest.raises(ExportError, match="cannot be a GGUF file exactly: it"):
            run(["gguf", option])


@pytest.mark.demo
def test_a_search_that_cannot_end_in_gguf_does_not_begin(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny.folder(place / "odd")
    monkeypatch.chdir(place)
    arguments = ["odd", "--export-strategy", "gguf", "--n-trials", "1"]
    with pytest.raises(ExportError, match="does not know the tokenizer of odd"):
        run(arguments)
    assert not (place / "checkpoints").exists()


@pytest.mark.demo
def test_a_disk_that_is_too_small_is_told_before_any_work(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    full = SimpleNamespace(free=10**6)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    with pytest.raises(ExportError, match=r"only 1 MB are free.*fewer or smaller types"):
        run(["gguf", "edited", "--types", "f16", "-o", "nowhere"])
    assert not (place / "nowhere").exists()
    saved = ["--save-directory", "nowhere", "--model-action", "save"]
    with pytest.raises(ExportError, match=r"only 1 MB are free"):
        run(["original", "--export-strategy", "gguf", *saved])
    assert not (place / "nowhere").exists()


@pytest.mark.demo
def test_a_search_ends_in_gguf_files_and_its_export_can_be_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    search = ["--n-trials", "2", "--n-startup-trials", "2", "--search", "tpe", "--force"]
    choice = ["--trial-index", "0", "--model-action", "save", "--save-directory", "found"]
    files = ["--export-strategy", "gguf", "--gguf-types", "q4_k_m"]
    assert run(["original", *search, *choice, *files]) == 0
    assert (place / "found" / "reproduce.json").is_file()
    first = json.loads((place / "found-gguf" / "gguf.json").read_text(encoding="utf-8"))
    assert first["original"] == "original"
    assert [row["type"] for row in first["files"]] == ["q4_k_m"]
    kept = {path.name for path in (place / "found-gguf").glob("*.gguf")}
    assert kept == {"found-q4_k_m.gguf"}, "the original's are kept only if that is wanted"
    card = (place / "found-gguf" / "README.md").read_text(encoding="utf-8")
    assert "## GGUF files" in card
    assert "## How to use it" not in card
    assert "found-gguf" in capsys.readouterr().out
    assert run(["gguf", "found", "--types", "q4_k_m", "-o", "again"]) == 0
    second = json.loads((place / "again" / "gguf.json").read_text(encoding="utf-8"))
    assert second["original"] == "original", "reproduce.json names it"
    assert second["files"][0]["sha256"] == first["files"][0]["sha256"]
    assert second["files"][0]["scores"] == first["files"][0]["scores"]


def test_a_folder_that_is_none_is_named(tmp_path: Path):
    with pytest.raises(ExportError, match="is not a folder"):
        run(["gguf", str(tmp_path / "none")])


def score(values: list[bool]) -> Score:
    count = sum(values)
    return Score(
        "refusals", count / len(values), "minimize", f"{count}/{len(values)}",
        values=tuple(map(float, values)),
    )  # fmt: skip


def results(before: list[bool], after: list[bool]) -> Results:
    def made(kind: str, values: list[bool]) -> Made:
        return Made(kind, f"{kind}.gguf", 1, "", False, {}, (), (score(values),), None, ())

    return Results(
        "model", None, 8, (), made("bf16", before), (made("q2_k", after),), 0.0, (), (), (), (), {}
    )


class TestSurvival:
    def test_what_comes_back_is_said(self):
        [text] = results([False] * 40, [True] * 12 + [False] * 28).survival()
        assert (
            "In q2_k a part of the edit does not survive: refusals is 12/40, unquantised 0/40"
            in text
        )

    def test_what_chance_explains_is_not(self):
        [text] = results([False] * 40, [True] * 2 + [False] * 38).survival()
        assert "The edit survives in q2_k" in text

    def test_an_improvement_is_no_loss(self):
        [text] = results([True] * 12 + [False] * 28, [False] * 40).survival()
        assert "The edit survives in q2_k" in text
