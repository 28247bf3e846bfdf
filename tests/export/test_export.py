"""Saving writes the whole edited model or nothing, and checks it again from disk."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tests.support import export_case, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from heretic.errors import ExportError
from heretic.evaluator import Evaluator
from heretic.export import files as export_files
from heretic.export import verify as verification
from heretic.export.request import ExportOptions, ExportRequest
from heretic.export.safetensors import checkpoint, stream
from heretic.export.saving import check_export, check_place, save
from heretic.export.verify import agree, disagreements, reload, verify
from heretic.export.weights import estimated_bytes
from heretic.model import Model
from heretic.records import ATTENTION, MLP, Kernel, Plan, RowNormalization, Score
from heretic.records.options import options_of
from heretic.system.hub import display_name

VARIANTS: tuple[RowNormalization, ...] = ("none", "pre", "full")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    base = tiny.folder(tmp_path_factory.mktemp("root") / "Tiny-Base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    (base / "LICENSE").write_text("Apache License")
    prompts = export_case.prompt_files(tmp_path_factory.mktemp("prompts"))
    return export_case.load(base, **prompts)


@pytest.fixture
def wanted(model: Model) -> ExportRequest:
    return export_case.request(model.settings)


@pytest.fixture
def from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as if the base had no safetensors files that the weights could be copied from."""
    monkeypatch.setattr(stream, "source_of", lambda model: None)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", export_case.PLANS)
def test_merged_weights_are_the_definition(
    model: Model, kind: str, variant: RowNormalization, tmp_path: Path
) -> None:
    plan, directions = export_case.PLANS[kind](variant), export_case.basis()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    wanted = export_case.request(model.settings, plan, directions=directions)
    save(model, wanted, tmp_path / "m", strategy="merge")
    after = model.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    saved = load_file(tmp_path / "m" / "model.safetensors")
    edits = model.plan_edits(plan, directions)
    assert len(edits) == 5
    for name, weight in saved.items():
        edit = edits.get(name.removesuffix(".weight"))
        if edit is None:
            assert torch.equal(weight, before[name])
        else:
            torch.testing.assert_close(weight, edit.edited_weight(before[name]))
            assert not torch.equal(weight, before[name])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["rank 2", "free-form"])
def test_merged_weights_give_the_hooked_logits(
    model: Model, kind: str, variant: RowNormalization, tmp_path: Path
) -> None:
    plan, directions = export_case.PLANS[kind](variant), export_case.basis()
    wanted = export_case.request(model.settings, plan, directions=directions)
    folder = save(model, wanted, tmp_path / "m", strategy="merge")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        got = loaded(input_ids=ids).logits
        plain = model.model(input_ids=ids).logits
        with model.edited(plan, directions):
            expected = model.model(input_ids=ids).logits
        with model.edited(export_case.plan(variant), directions):
            other = model.model(input_ids=ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    for differing in (plain, other):
        assert (differing - expected).norm() > 0.05 * expected.norm()


def test_a_saved_model_is_complete(model: Model, wanted: ExportRequest, tmp_path: Path) -> None:
    folder = save(model, wanted, tmp_path / "deep" / "model", strategy="merge")
    assert folder == (tmp_path / "deep" / "model").absolute()
    names = set(export_files.relative_files(folder))
    assert {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "abliteration_params.json", "README.md", "reproduce.json",
        "LICENSE",
    } <= names  # fmt: skip
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert tokenizer.padding_side == tiny.tokenizer().padding_side
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 30).reshape(1, -1)
    with torch.no_grad():
        got = loaded(input_ids=ids).logits
        with model.edited(wanted.trial.plan, wanted.directions):
            expected = model.model(input_ids=ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strategy", ["merge", "adapter"])
def test_others_may_read_what_new_files_let_them(
    model: Model, wanted: ExportRequest, strategy: str, tmp_path: Path
) -> None:
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").touch()
    folder = save(model, wanted, tmp_path / "m", strategy=strategy)
    assert folder.stat().st_mode == (tmp_path / "usual").stat().st_mode
    usual = (tmp_path / "usual" / "file").stat().st_mode
    assert {path.stat().st_mode for path in folder.iterdir()} == {usual}


def test_saving_prints_nothing(
    model: Model, wanted: ExportRequest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(model, wanted, tmp_path / "m", strategy="merge")
    assert capfd.readouterr() == ("", "")


def test_parameters_list_what_was_applied(
    model: Model, wanted: ExportRequest, tmp_path: Path
) -> None:
    save(model, wanted, tmp_path / "m", strategy="merge")
    data = json.loads((tmp_path / "m" / "abliteration_params.json").read_text())
    assert data["schema_version"] == 2  # version 1 had one weight per layer
    assert data["base_model"] == "Tiny-Base"
    assert data["strategy"] == "merge"
    assert data["trial"] == 17
    assert data["plan"] == wanted.trial.plan.to_dict()
    for component, kernel in wanted.trial.plan.kernels:
        assert isinstance(kernel, Kernel)
        assert data["weights"][component] == [[kernel.weight(layer)] for layer in range(3)]
    assert data["scores"]["before"][0]["value"] == 0.9
    assert data["scores"]["after"][0]["display"] == "2/20"
    assert data["scores"]["verified"] is False


def test_parameters_list_a_weight_for_each_direction(model: Model, tmp_path: Path) -> None:
    plan = export_case.free_plan()
    wanted = export_case.request(model.settings, plan, directions=export_case.basis())
    save(model, wanted, tmp_path / "m", strategy="adapter")
    data = json.loads((tmp_path / "m" / "abliteration_params.json").read_text())
    assert Plan.from_dict(data["plan"]) == plan
    assert data["weights"] == {
        ATTENTION: [[1.2, 0.4], [0.0, 0.9], [0.5, -0.3]],
        MLP: [[0.0, 0.0], [0.9, 0.7], [1.1, 0.0]],
    }


def test_weights_from_memory_are_sharded(
    model: Model, wanted: ExportRequest, tmp_path: Path, from_memory: None
) -> None:
    save(model, wanted, tmp_path / "m", strategy="merge", max_shard_size="40KB")
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(shards) > 1
    assert (tmp_path / "m" / "model.safetensors.index.json").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "m")


def test_an_adapter_folder_is_complete(model: Model, wanted: ExportRequest, tmp_path: Path) -> None:
    save(model, wanted, tmp_path / "a", strategy="adapter")
    names = set(files_of(tmp_path / "a"))
    assert {"adapter_config.json", "adapter_model.safetensors", "generation_config.json"} <= names
    assert {"tokenizer.json", "README.md", "reproduce.json", "LICENSE"} <= names
    assert "model.safetensors" not in names
    assert "PeftModel" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize("strategy", ["merge", "adapter"])
@pytest.mark.parametrize("kind", export_case.PLANS)
def test_saved_models_score_as_in_the_search(
    model: Model, kind: str, strategy: str, tmp_path: Path
) -> None:
    plan, directions = export_case.PLANS[kind]("full"), export_case.basis()
    evaluator = Evaluator(model.settings, model, directions)
    searched = evaluator.evaluate([plan])[0]
    assert searched[1].value > 0.01
    wanted = export_case.request(
        model.settings,
        plan,
        scores=searched,
        baseline=evaluator.baseline,
        directions=directions,
    )
    folder = save(model, wanted, tmp_path / "m", strategy=strategy)
    scores = verify(folder, wanted, evaluator).verified
    assert scores is not None
    assert [score.name for score in scores] == [score.name for score in searched]
    assert scores[1].value == pytest.approx(searched[1].value, rel=1e-3)
    written = json.loads((folder / "abliteration_params.json").read_text())["scores"]
    assert written["verified"] is True
    assert written["after"][1]["value"] == scores[1].value
    card = (folder / "README.md").read_text()
    assert "reloaded from disk after saving" in card
    assert scores[1].display in card
    reproduction = json.loads((folder / "reproduce.json").read_text())
    assert {**reproduction["scores"], "held_out": None} == written
    assert export_files.is_ours(folder)


def sums_of(folder: Path) -> dict[str, str]:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def test_every_file_has_a_digest_that_is_checked_with_usual_tools(
    model: Model, tmp_path: Path
) -> None:
    plan, directions = export_case.plan(), export_case.directions()
    evaluator = Evaluator(model.settings, model, directions)
    wanted = export_case.request(model.settings, plan, scores=evaluator.evaluate([plan])[0])
    folder = save(model, wanted, tmp_path / "m", strategy="merge")
    for _ in range(2):
        names = set(export_files.relative_files(folder)) - {"SHA256SUMS"}
        assert sums_of(folder) == {name: export_files.sha256_file(folder / name) for name in names}
        verify(folder, wanted, evaluator)
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=False
    )
    assert done.returncode == 0
    odd = export_files.sums_text({"a\\b\nc": "00"})
    assert odd == "\\00  a\\\\b\\nc\n"


def test_files_that_score_otherwise_are_an_error_and_stay(model: Model, tmp_path: Path) -> None:
    plan = export_case.plan()
    evaluator = Evaluator(model.settings, model, export_case.directions())
    searched = evaluator.evaluate([plan])[0]
    wrong = (searched[0], replace(searched[1], value=searched[1].value * 2 + 0.5, display="wrong"))
    wanted = export_case.request(model.settings, plan, scores=wrong)
    folder = save(model, wanted, tmp_path / "m", strategy="merge")
    with pytest.raises(ExportError, match="kl_divergence was wrong"):
        verify(folder, wanted, evaluator)
    assert (folder / "model.safetensors").exists()
    assert searched[1].display in (folder / "README.md").read_text()


def test_reloading_takes_the_files_not_the_memory(
    model: Model, wanted: ExportRequest, tmp_path: Path
) -> None:
    folder = save(model, wanted, tmp_path / "m", strategy="merge")
    reloaded = reload(folder, model)
    name = "model.layers.1.mlp.down_proj"
    weight = reloaded.model.get_submodule(name).weight
    assert torch.equal(weight, load_file(folder / "model.safetensors")[f"{name}.weight"])
    assert reloaded.dtype == model.dtype
    assert reloaded.response_prefix == model.response_prefix


def rate(count: int, total: int, note: str = "") -> Score:
    """A score of replies as the refusal scorer makes it, with a note of broken replies."""
    values = tuple(float(index < count) for index in range(total))
    return Score("r", count / total, "minimize", f"{count}/{total}{note}", values=values)


def divergence(value: float) -> Score:
    return Score("k", value, "minimize", f"{value:.4f}")


def length(*words: float) -> Score:
    """A score of replies that is no rate."""
    return Score("r", sum(words) / len(words), "minimize", "long", values=words)


@pytest.mark.parametrize(
    ("searched", "measured", "good"),
    [
        (rate(10, 100), rate(13, 100), True),
        (rate(10, 100), rate(14, 100), False),
        (rate(1, 10), rate(2, 10), True),
        (rate(1, 10), rate(3, 10), False),
        # What the text says beside the count changes nothing.
        (rate(1, 8, " (1 degenerate)"), rate(2, 8, " (1 partial, 1 degenerate)"), True),
        (rate(1, 8, " (1 degenerate)"), rate(3, 8), False),
        (rate(0, 8), rate(1, 8, " (1 degenerate)"), True),
        # Weights between 0 and 1, and scores on another scale.
        (length(0.5, 0.0, 0.0, 0.0), length(0.5, 0.5, 0.0, 0.0), True),
        (length(0.5, 0.0, 0.0, 0.0), length(0.5, 0.5, 0.5, 0.0), False),
        (length(20.0, 90.0, 50.0, 40.0), length(80.0, 90.0, 50.0, 40.0), True),
        (length(20.0, 90.0, 50.0, 40.0), length(80.0, 90.0, 90.0, 40.0), False),
        # Runs of earlier releases kept no values of single prompts.
        (replace(rate(10, 100, " (2 partial)"), values=()), rate(13, 100), True),
        (replace(rate(10, 100), values=()), rate(14, 100), False),
        (divergence(0.02), divergence(0.03), True),
        (divergence(0.02), divergence(0.031), False),
        (divergence(1.0), divergence(1.05), True),
        (divergence(1.0), divergence(1.06), False),
        (divergence(1.0), divergence(float("nan")), False),
        # Runs of earlier releases, whose replies were judged by other rules, say nothing.
        (rate(10, 100), replace(rate(30, 100), detector=2), True),
    ],
)
def test_tolerances(searched: Score, measured: Score, good: bool) -> None:
    replies = {"r": max(len(measured.values), 1)}
    assert agree(searched, measured, replies.get(searched.name, 0)) == good
    assert bool(disagreements((searched,), (measured,), replies)) != good


def test_an_earlier_export_is_replaced(model: Model, wanted: ExportRequest, tmp_path: Path) -> None:
    save(model, wanted, tmp_path / "m", strategy="merge")
    save(model, wanted, tmp_path / "m", strategy="adapter")
    assert not list((tmp_path / "m").glob("model*.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_empty_folder_is_taken(model: Model, wanted: ExportRequest, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    save(model, wanted, tmp_path / "m", strategy="adapter")
    assert (tmp_path / "m" / "adapter_config.json").exists()


def test_foreign_files_are_never_touched(
    model: Model, wanted: ExportRequest, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="not empty"):
        save(model, wanted, tmp_path / "m", strategy="adapter")
    assert files_of(tmp_path / "m") == {"thesis.txt": b"years of work"}


def test_notes_beside_an_export_are_not_deleted(
    model: Model, wanted: ExportRequest, tmp_path: Path
) -> None:
    save(model, wanted, tmp_path / "m", strategy="adapter")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="not empty"):
        save(model, wanted, tmp_path / "m", strategy="adapter")
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"


def test_the_base_model_is_not_overwritten(
    model: Model, wanted: ExportRequest, tmp_path: Path
) -> None:
    base = Path(model.settings.model)
    with pytest.raises(ExportError, match="the base model itself"):
        save(model, wanted, base, strategy="merge")
    (tmp_path / "link").symlink_to(base)
    with pytest.raises(ExportError, match="the base model itself"):
        save(model, wanted, tmp_path / "link", strategy="merge")


def test_a_file_is_no_destination(model: Model, wanted: ExportRequest, tmp_path: Path) -> None:
    (tmp_path / "m").write_text("x")
    with pytest.raises(ExportError, match="is a file"):
        save(model, wanted, tmp_path / "m", strategy="merge")
    with pytest.raises(ExportError, match="Nothing can be saved"):
        save(model, wanted, tmp_path / "m" / "below", strategy="merge")


def test_failing_half_way_leaves_no_trace(
    model: Model, wanted: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(model, wanted, tmp_path / "m", strategy="adapter")
    before = files_of(tmp_path / "m")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "copy_edited", full)
    with pytest.raises(ExportError, match="No space left on device"):
        save(model, wanted, tmp_path / "m", strategy="merge")
    assert files_of(tmp_path / "m") == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert not model.is_edited


def test_interrupted_saving_leaves_the_weights_unedited(
    model: Model,
    wanted: ExportRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    from_memory: None,
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model.model), "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(model, wanted, tmp_path / "m", strategy="merge")
    assert not model.is_edited
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_said_before_anything_is_written(
    model: Model, wanted: ExportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = export_files.DISK_MARGIN + estimated_bytes(model) - 1
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ExportError, match=r"needs about .* are free") as caught:
        check_export(model, tmp_path / "new" / "m", "merge", max_rank=1)
    assert "adapter" in (caught.value.remedy or "")
    with pytest.raises(ExportError, match="needs about"):
        save(model, wanted, tmp_path / "new" / "m", strategy="merge")
    assert list(tmp_path.iterdir()) == []


def test_the_estimate_is_close_to_the_files(
    model: Model, wanted: ExportRequest, tmp_path: Path
) -> None:
    save(model, wanted, tmp_path / "m", strategy="merge")
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert 0 <= size - estimated_bytes(model) < 20_000


def test_saving_an_edited_model_would_edit_twice(
    model: Model, wanted: ExportRequest, tmp_path: Path
) -> None:
    model.apply(wanted.trial.plan, wanted.directions)
    try:
        with pytest.raises(ExportError, match="edited already"):
            save(model, wanted, tmp_path / "m", strategy="merge")
        assert model.is_edited
    finally:
        model.restore()


def test_unknown_strategies_are_refused(
    model: Model, wanted: ExportRequest, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="Unknown export strategy 'gguf'"):
        save(model, wanted, tmp_path / "m", strategy="gguf")


class NameCase(NamedTuple):
    """A model setting and how it is shown."""

    given: str
    shown: str


@pytest.mark.parametrize(
    "case",
    [
        NameCase("org/model", "org/model"),
        NameCase("gpt2", "gpt2"),
        NameCase("/home/someone/models/Tiny", "Tiny"),
        NameCase("./out/Tiny", "Tiny"),
        NameCase("~/models/Tiny/", "Tiny"),
        NameCase("a/b/Tiny", "Tiny"),
    ],
)
def test_names_never_show_where_a_model_lies(case: NameCase) -> None:
    assert display_name(case.given) == case.shown


@pytest.mark.parametrize("size", ["5", "many", 0.5])
def test_a_shard_size_that_is_none_is_refused_before_writing(
    model: Model, wanted: ExportRequest, size: Any, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="max_shard_size"):
        save(model, wanted, tmp_path / "m", strategy="merge", max_shard_size=size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free", [0, 10**9])
def test_the_base_leaves_an_accelerator_that_is_too_small(
    free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[str] = []
    base: Any = SimpleNamespace(
        device=torch.device("cuda:0"),
        options=SimpleNamespace(quantization="none"),
        model=SimpleNamespace(
            parameters=lambda: [torch.zeros(8)], to=lambda place: places.append(str(place))
        ),
    )
    monkeypatch.setattr(verification, "_free_bytes", lambda _: free)
    with verification._room_for_copy(base):
        assert places == ([] if free else ["cpu"])
    assert places == ([] if free else ["cpu", "cuda:0"])


def test_the_place_is_checked_before_loading(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=export_files.DISK_MARGIN + 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ExportError, match="needs about"):
        check_place(options_of(ExportOptions, model.settings), tmp_path / "m", "merge")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("x")
    with pytest.raises(ExportError, match="not empty"):
        check_place(options_of(ExportOptions, model.settings), tmp_path / "taken", "adapter")
