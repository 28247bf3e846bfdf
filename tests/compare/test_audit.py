"""An export is what its plan and its documents say; what is altered in it is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support import export_case, tiny

from heretic.cli.main import run
from heretic.compare import figures
from heretic.compare.audit import audit
from heretic.compare.findings import Finding, failures
from heretic.errors import AuditError, ExportError
from heretic.events import Silent
from heretic.export.documents.write import FAILED_AUDIT
from heretic.export.files import inventory, write_sums
from heretic.export.saving import save
from heretic.model.source import ModelSource
from heretic.pipeline import audit_saved
from heretic.records import RowNormalization, Score

WEIGHTS = "model.safetensors"
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "head_dim": 8,
    },
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
}
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base") / "model")


def exported(
    base: Path,
    place: Path,
    kind: str = "rank 1",
    variant: RowNormalization = "full",
    strategy: str = "merge",
) -> Path:
    plan = export_case.PLANS[kind](variant)
    request = export_case.request(export_case.settings(base), plan, directions=export_case.basis())
    return save(export_case.load(base), request, place, strategy=strategy)


@pytest.fixture(scope="module")
def merged(base: Path) -> Path:
    return exported(base, base.parent / "merged")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return exported(base, base.parent / "adapter", strategy="adapter")


def copied(folder: Path, name: str) -> Path:
    """A copy beside the base, where it is found."""
    place = folder.parent / name
    shutil.rmtree(place, ignore_errors=True)
    return shutil.copytree(folder, place)


def audited(folder: Path) -> list[Finding]:
    return audit(folder, Silent())


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def recorded_anew(folder: Path) -> None:
    """Let the documents hold the digests of files as they are, as if they had been saved so."""
    files = inventory(folder)
    edit_json(folder / "reproduce.json", lambda data: data.update(files=files))
    write_sums(folder, files)


class TestSound:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("variant", ["none", "pre", "full"])
    def test_exports_pass(self, family: str, variant: RowNormalization, tmp_path: Path) -> None:
        original = tiny.folder(tmp_path / "model", family, **FAMILIES[family])
        for kind in export_case.PLANS:
            assert audited(exported(original, tmp_path / kind, kind, variant)) == []
            if "experts" not in str(FAMILIES[family]):
                folder = exported(original, tmp_path / f"{kind} a", kind, variant, "adapter")
                assert audited(folder) == []

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_in_shards(self, dtype: torch.dtype, tmp_path: Path) -> None:
        model = tiny.model().to(dtype)
        model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
        tiny.tokenizer().save_pretrained(tmp_path / "model")
        for variant in ("none", "full"):
            assert audited(exported(tmp_path / "model", tmp_path / variant, variant=variant)) == []

    def test_an_adapter_as_the_base(self, base: Path, adapter: Path, tmp_path: Path) -> None:
        again = exported(adapter, tmp_path / "again", variant="none")
        source = ModelSource(model=str(adapter), model_commit=None, trust_remote_code=False)
        assert audit(again, Silent(), base=source) == []

    def test_a_moved_base_is_not_audited(self, merged: Path, tmp_path: Path) -> None:
        (finding,) = audited(shutil.copytree(merged, tmp_path / "alone"))
        assert not finding.failed
        assert "name it with --base" in finding.text

    def test_a_folder_of_others_is_refused(self, base: Path) -> None:
        with pytest.raises(ExportError):
            audited(base)


def scramble(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].flip(0).contiguous()

    return change


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors[DOWN][0, 0] = torch.nan


def halve(tensors: dict[str, torch.Tensor]) -> None:
    tensors[DOWN] = tensors[DOWN].half()


def untie(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.extra.weight"] = torch.ones(3, 3)


QUERY = "model.layers.0.self_attn.q_proj.weight"


class TestTensors:
    @pytest.mark.parametrize(
        ("change", "check", "said"),
        [
            (lambda tensors: tensors.pop(QUERY), "weights", QUERY),
            (untie, "weights", "model.extra.weight"),
            (scramble(QUERY), "weights", f"{QUERY} differs from the base, and the plan does not"),
            (scramble(DOWN), "rank", f"{DOWN} differs from the base by more than the plan's rank"),
            (poison, "weights", f"{DOWN} holds numbers that are not finite"),
            (halve, "dtype", f"Stored as F16, while the base has F32: {DOWN}"),
        ],
    )
    def test_what_is_altered_is_named(
        self, merged: Path, change: Callable[[Any], None], check: str, said: str
    ) -> None:
        folder = copied(merged, "altered")
        edit_tensors(folder / WEIGHTS, change)
        digest = [f for f in audited(folder) if f.check == "files"]
        assert [WEIGHTS in finding.text for finding in digest] == [True]
        recorded_anew(folder)
        (finding,) = audited(folder)
        assert finding.check == check
        assert finding.failed
        assert said in finding.text

    def test_an_edit_that_is_missing(self, base: Path, merged: Path) -> None:
        folder = copied(merged, "unedited")
        original = load_file(base / WEIGHTS)
        edit_tensors(folder / WEIGHTS, lambda tensors: tensors.update({DOWN: original[DOWN]}))
        recorded_anew(folder)
        (finding,) = audited(folder)
        assert finding.text == f"{DOWN} is the base's, while the plan edits it."
        edit_tensors(folder / WEIGHTS, lambda tensors: tensors.update(original))
        recorded_anew(folder)
        (finding,) = audited(folder)
        assert finding.text == "No tensor differs from the base, while the plan edits some."

    def test_one_expert_that_is_missing(self, tmp_path: Path) -> None:
        original = tiny.folder(tmp_path / "model", "gpt_oss", **FAMILIES["gpt_oss"])
        folder = exported(original, tmp_path / "edited")
        before = load_file(original / WEIGHTS)
        name = next(name for name in before if "layers.1.mlp.experts.down_proj" in name)

        def restore(tensors: dict[str, torch.Tensor]) -> None:
            tensors[name][2] = before[name][2]

        edit_tensors(folder / WEIGHTS, restore)
        recorded_anew(folder)
        (finding,) = audited(folder)
        assert finding.text == f"1 of the 4 experts in {name} are the base's, not edited."

    def test_an_untied_head(self, tmp_path: Path) -> None:
        original = tiny.folder(tmp_path / "model", tie_word_embeddings=True)
        folder = exported(original, tmp_path / "edited")
        embedding = "model.embed_tokens.weight"
        for head, wrong in ((0.0, 0), (1.0, 1)):
            tensors = load_file(folder / WEIGHTS)
            tensors["lm_head.weight"] = tensors[embedding] + head
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
            recorded_anew(folder)
            assert len(failures(audited(folder))) == wrong


class TestFiles:
    def test_the_template(self, merged: Path) -> None:
        folder = copied(merged, "template")
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        recorded_anew(folder)
        (finding,) = audited(folder)
        assert (finding.check, finding.text) == (
            "companions",
            "chat_template.jinja is not the base's.",
        )

    def test_a_lost_tokenizer(self, adapter: Path) -> None:
        folder = copied(adapter, "lost")
        (folder / "tokenizer.json").unlink()
        found = [finding.text for finding in audited(folder)]
        assert "tokenizer.json is missing." in found
        recorded_anew(folder)
        (finding,) = audited(folder)
        assert finding.text == "tokenizer.json of the base was lost."

    def test_the_index(self, tmp_path: Path) -> None:
        original = tiny.folder(tmp_path / "model", max_shard_size="20KB")
        folder = exported(original, tmp_path / "edited")
        index = folder / "model.safetensors.index.json"
        edit_json(index, lambda data: data["weight_map"].pop(DOWN))
        recorded_anew(folder)
        assert any(
            finding.check == "files" and f"lacks tensors: {DOWN}" in finding.text
            for finding in audited(folder)
        )

    def test_a_file_more(self, merged: Path) -> None:
        folder = copied(merged, "more")
        (folder / "notes.txt").write_text("x")
        (finding,) = audited(folder)
        assert finding.text.startswith("notes.txt is not among the files")


class TestFigures:
    def test_a_doctored_card(self, merged: Path) -> None:
        folder = copied(merged, "doctored")
        card = folder / "README.md"
        card.write_text(card.read_text().replace("2/20", "0/20"))
        write_sums(folder, json.loads((folder / "reproduce.json").read_text())["files"])
        (finding,) = audited(folder)
        assert finding.check == "figures"
        assert finding.text == (
            "README.md says refusals '0/20' of this model, reproduce.json '2/20'."
        )

    def test_a_card_of_an_earlier_release(self, merged: Path) -> None:
        folder = copied(merged, "earlier")
        card = folder / "README.md"
        assert "| KL divergence |" in card.read_text()
        card.write_text(card.read_text().replace("| KL divergence |", "| kl divergence |"))
        write_sums(folder, json.loads((folder / "reproduce.json").read_text())["files"])
        assert audited(folder) == []

    def test_other_documents(self, merged: Path) -> None:
        folder = copied(merged, "scores")
        edit_json(
            folder / "abliteration_params.json",
            lambda data: data["scores"]["after"][0].update(value=0.0),
        )
        found = [finding.text for finding in audited(folder)]
        assert "abliteration_params.json and reproduce.json hold different scores." in found
        assert any("SHA256SUMS" in text for text in found)


class TestAdapters:
    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("base_model_name_or_path", "org/other", "names org/other as the base"),
            ("r", 2, "has r 2"),
            ("use_dora", False, "use_dora False"),
        ],
    )
    def test_the_configuration(self, adapter: Path, key: str, value: Any, said: str) -> None:
        folder = copied(adapter, "configured")
        edit_json(folder / "adapter_config.json", lambda data: data.update({key: value}))
        recorded_anew(folder)
        assert any(said in finding.text for finding in audited(folder))

    def test_the_norms(self, adapter: Path) -> None:
        folder = copied(adapter, "norms")
        name = "base_model.model.model.layers.1.mlp.down_proj.lora_magnitude_vector"
        edit_tensors(folder / "adapter_model.safetensors", lambda t: t[name].mul_(1.1))
        recorded_anew(folder)
        (finding,) = audited(folder)
        assert finding.text == f"The norms that the adapter stores for {DOWN} are not the base's."


class TestEnd:
    """What happens at the end of an export."""

    def test_the_card_says_what_was_found(self, merged: Path) -> None:
        folder = copied(merged, "failed")
        edit_tensors(folder / WEIGHTS, scramble(QUERY))
        recorded_anew(folder)
        with pytest.raises(AuditError, match="failed its audit") as caught:
            audit_saved(folder, Silent())
        assert caught.value.exit_status == 1
        card = (folder / "README.md").read_text()
        assert card.startswith("---\n")
        assert FAILED_AUDIT in card
        assert f"> - {QUERY} differs from the base" in card
        assert len(audited(folder)) == 1  # the digest of the card is right

    def test_sound_files_are_left_alone(self, merged: Path) -> None:
        before = (merged / "README.md").read_text()
        assert audit_saved(merged, Silent()) == []
        assert (merged / "README.md").read_text() == before

    def test_command(self, merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["audit", str(merged)]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "is what its plan and its documents say" in said
        folder = copied(merged, "command")
        (folder / "config.json").unlink()
        assert run(["audit", str(folder), "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert found["failed"]
        assert {"check", "text", "failed"} == set(found["findings"][0])


@pytest.mark.parametrize(
    ("cell", "interval", "shown"),
    [
        ("2/20", None, True),
        ("2/20 [0, 0.3]", None, False),
        ("2/20 [0.028, 0.3]", (0.0279, 0.301), True),
        ("2/20 [0.01, 0.5]", (0.0279, 0.301), True),  # corrected for a choice among many
        ("2/20 [0.05, 0.2]", (0.0279, 0.301), False),
        ("1/20 [0.028, 0.3]", (0.0279, 0.301), False),
        ("2/20", (0.0279, 0.301), False),
    ],
)
def test_what_a_card_may_show_of_a_score(
    cell: str, interval: tuple[float, float] | None, shown: bool
) -> None:
    score = Score("refusals", 0.1, "minimize", "2/20", interval=interval)
    assert figures._shows(cell, score) == shown
