"""Two checkpoints: the kind of edit between them, what was lost or added, what cards claim."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.support import export_case, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM

from heretic.cli.main import run
from heretic.compare.checkpoints import CheckpointComparison, compare_checkpoints, kind_of
from heretic.compare.claims import claims
from heretic.compare.difference import TensorDifference, paired_names
from heretic.compare.side import open_side
from heretic.errors import ModelError
from heretic.events import Silent
from heretic.export.saving import save
from heretic.records import RowNormalization

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base") / "model")


def compared(judged: Path, original: Path) -> CheckpointComparison:
    return compare_checkpoints(open_side(str(judged)), open_side(str(original)), Silent())


def changed(base: Path, place: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a model whose tensors were changed in place."""
    shutil.copytree(base, place)
    tensors = load_file(place / WEIGHTS)
    change(tensors)
    save_file(tensors, place / WEIGHTS, metadata={"format": "pt"})
    return place


def exported(base: Path, place: Path, kind: str, variant: RowNormalization, strategy: str) -> Path:
    plan = export_case.PLANS[kind](variant)
    request = export_case.request(export_case.settings(base), plan, directions=export_case.basis())
    return save(export_case.load(base), request, place, strategy=strategy)


class TestKinds:
    @pytest.mark.parametrize("strategy", ["merge", "adapter"])
    @pytest.mark.parametrize(
        ("kind", "variant", "expected", "said"),
        [
            ("rank 1", "none", "directional_ablation", "row norms not kept"),
            ("rank 1", "pre", "directional_ablation", "row norms not kept"),
            ("rank 1", "full", "norm_preserving_ablation", "row norms kept"),
            ("rank 2", "full", "norm_preserving_ablation", "row norms kept"),
            ("fit", "none", "fit", "row norms not kept"),
            ("fit", "full", "norm_preserving_fit", "row norms kept"),
        ],
    )
    def test_of_exports(
        self,
        base: Path,
        tmp_path: Path,
        strategy: str,
        kind: str,
        variant: RowNormalization,
        expected: str,
        said: str,
    ) -> None:
        found = compared(exported(base, tmp_path / "e", kind, variant, strategy), base)
        assert found.kind == expected
        rank = 1 if kind == "rank 1" else 2
        start = f"5 of 30 tensors differ, each by a matrix of rank {rank}; {said}; "
        assert found.verdict().startswith(start)
        assert found.directions is not None
        assert found.directions.shared == (kind != "fit")
        assert (found.parts, found.files) == ((), ())
        assert {claim.text for claim in found.claims} == {"2/20", "0.0625"}

    def test_of_a_merged_lora_and_its_adapter(self, base: Path, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "up_proj", "down_proj"])
        peft: Any = get_peft_model(model, config)
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        peft.save_pretrained(tmp_path / "adapter")
        peft.merge_and_unload().save_pretrained(tmp_path / "merged")
        for side in ("adapter", "merged"):
            found = compared(tmp_path / side, base)
            assert found.kind == "lora"
            assert {row.rank for row in found.edited} == {3}
            assert len(found.edited) == 9
        assert compared(tmp_path / "adapter", tmp_path / "merged").kind in (
            "identical",
            "dtype_change",  # PEFT may round the sum otherwise
        )
        both = compared(base, tmp_path / "adapter")  # the adapter may be the original
        assert {row.rank for row in both.edited} == {3}

    def test_of_fine_tuning(self, base: Path, tmp_path: Path) -> None:
        def train(tensors: dict[str, Tensor]) -> None:
            torch.manual_seed(0)
            for tensor in tensors.values():
                tensor.add_(torch.randn_like(tensor), alpha=0.01)

        found = compared(changed(base, tmp_path / "m", train), base)
        assert found.kind == "fine_tune"
        assert found.verdict().startswith("30 of 30 tensors differ")

    def test_of_another_dtype(self, base: Path, tmp_path: Path) -> None:
        def halve(tensors: dict[str, Tensor]) -> None:
            tensors |= {name: tensor.bfloat16() for name, tensor in tensors.items()}

        found = compared(changed(base, tmp_path / "m", halve), base)
        assert (found.kind, found.edited) == ("dtype_change", ())
        assert "but for rounding in 30" in found.verdict()

    def test_of_no_edit(self, base: Path) -> None:
        found = compared(base, base)
        assert (found.kind, found.differences, found.directions) == ("identical", (), None)
        assert found.verdict() == (
            "All 30 tensors that both have are equal: the weights are identical."
        )

    def test_of_shards(self, base: Path, tmp_path: Path) -> None:
        sharded = tiny.folder(tmp_path / "sharded", max_shard_size="20KB")
        assert len(list(sharded.glob("*.safetensors"))) > 1
        assert compared(sharded, base).kind == "identical"

    def test_of_experts_each_by_itself(self, tmp_path: Path) -> None:
        original = tiny.folder(tmp_path / "base", "gpt_oss", num_local_experts=4, head_dim=8)

        def edit(tensors: dict[str, Tensor]) -> None:
            name = next(name for name in tensors if name.endswith("experts.down_proj"))
            tensors[name][2] += torch.outer(torch.ones(48), torch.ones(32)) / 10

        (row,) = compared(changed(original, tmp_path / "m", edit), original).edited
        assert (row.experts, row.changed, row.rank) == (4, 1, 1)


class TestParts:
    def test_a_dropped_and_an_added_tensor(self, base: Path, tmp_path: Path) -> None:
        def swap(tensors: dict[str, Tensor]) -> None:
            del tensors["model.layers.1.mlp.up_proj.weight"]
            tensors["mtp.layers.0.weight"] = torch.ones(2, 2)

        lost, added = compared(changed(base, tmp_path / "m", swap), base).parts
        assert (lost.lost, lost.what, lost.harmless) == (True, "other tensors", "")
        assert (added.lost, added.what) == (False, "multi-token prediction")
        assert "model.layers.1.mlp.up_proj.weight" in lost.sentence()

    def test_an_untied_head(self, tmp_path: Path) -> None:
        tied = tiny.folder(tmp_path / "tied", tie_word_embeddings=True)

        def untie(tensors: dict[str, Tensor]) -> None:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

        def part_from_it(tensors: dict[str, Tensor]) -> None:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

        (copy,) = compared(changed(tied, tmp_path / "copy", untie), tied).parts
        (own,) = compared(changed(tied, tmp_path / "own", part_from_it), tied).parts
        assert (copy.what, own.what) == ("output head", "output head")
        assert copy.harmless
        assert not own.harmless
        (back,) = compared(tied, tmp_path / "copy").parts
        assert back.lost
        assert back.harmless

    def test_names_that_begin_otherwise(self) -> None:
        ours = ["model.language_model.layers.0.a", "lm_head.weight", "x"]
        names = paired_names(ours, ["model.layers.0.a", "lm_head.weight", "y"])
        assert set(names.pairs) == {
            ("model.language_model.layers.0.a", "model.layers.0.a"),
            ("lm_head.weight", "lm_head.weight"),
        }
        assert (names.added, names.lost) == (("x",), ("y",))


class TestFiles:
    def test_template_and_configurations(self, base: Path, tmp_path: Path) -> None:
        other = shutil.copytree(base, tmp_path / "other")
        (other / "chat_template.jinja").write_text("{{ messages }}")
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(
            json.dumps({**config, "rms_norm_eps": 0.1, "transformers_version": "0"})
        )
        (other / "generation_config.json").unlink()
        found = {file.what: (file.change, file.detail) for file in compared(other, base).files}
        assert found == {
            "chat template": ("changed", ""),
            "config.json": ("changed", "rms_norm_eps"),
            "generation_config.json": ("lost", ""),
        }

    def test_a_folder_without_safetensors_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="holds no whole model"):
            open_side(str(tmp_path))
        with pytest.raises(ModelError, match="GGUF"):
            open_side("./a.gguf")

    def test_an_adapter_of_another_model_is_refused(self, base: Path, tmp_path: Path) -> None:
        adapter = exported(base, tmp_path / "a", "rank 1", "none", "adapter")
        other = tiny.folder(tmp_path / "gpt2", "gpt2", n_embd=32, n_layer=3, n_head=4)
        config = json.loads((adapter / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(other)
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="does not have"):
            open_side(str(adapter))


OTHERS = (
    "| Metric | This model | Original |\n| :-- | :-: | :-: |\n"
    "| **KL divergence** | 0.08 | 0 |\n| **Refusals** | 5/100 | 97/100 |"
)
OURS = (
    "| score | base model | this model |\n| --- | ---: | ---: |\n"
    "| refusals | 18/20 [0.7, 0.9] | 2/20 [0, 0.3] |"
)

LONG = (
    "| score | base model | this model | difference, 95% interval |\n| --- | ---: | ---: | ---: |\n"
    "| late refusals | 0/20 | 1/20 | +0.05 |\n"
    "| broken replies | 0/100 (of 16 answers) | 9/100 (of 97 answers) | +0.09 |\n"
    "| capability | 7/10 (chance 22%, p 0.5) | 6/10 (chance 22%, p 0.4) | -0.1 |"
)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("Refusals: 3/100, KL divergence: 0.12", {"refusals": 0.03, "kl_divergence": 0.12}),
        ("- **Refusals**: 3 of 100\n- **KL**: 1e-2", {"refusals": 0.03, "kl_divergence": 0.01}),
        ("The refusal rate is 4%.", {}),  # a sentence, which is not taken for a figure
        (OTHERS, {"refusals": 0.05, "kl_divergence": 0.08}),
        (OURS, {"refusals": 0.1}),
        ("Refusals of this kind have 3 causes.", {}),
        (LONG, {"late_refusals": 0.05, "broken_replies": 0.09, "capability": 0.6}),
        ("Late refusals: 3/20", {"late_refusals": 0.15}),
    ],
)
def test_figures_that_cards_claim(card: str, expected: dict[str, float], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    assert {claim.name: claim.value for claim in claims(tmp_path)} == pytest.approx(expected)


class TestCommand:
    def test_json_with_scores(
        self, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        edited = exported(base, tmp_path / "e", "rank 1", "none", "merge")
        tiny.prompt_files(tmp_path)
        sets = tiny.PROMPT_TABLES.replace('"good.txt"', f'"{tmp_path}/good.txt"')
        config = tmp_path / "c.toml"
        config.write_text(
            "max_response_length = 4\nbatch_size = 4\n"
            + sets.replace('"bad.txt"', f'"{tmp_path}/bad.txt"')
        )
        arguments = ["compare", str(edited), str(base), "--config", str(config), "--json"]
        assert run(arguments) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["kind"] == "directional_ablation"
        assert found["tensors"] == {"compared": 30, "different": 5}
        claim = next(claim for claim in found["claims"] if claim["name"] == "kl_divergence")
        assert claim["value"] == 0.0625
        assert claim["measured"] == found["scores"]["kl_divergence"]["value"] > 0
        assert found["baseline"]["kl_divergence"]["value"] == 0
        assert found["not_scored"] is None
        card = edited / "README.md"
        card.write_text(card.read_text() + "\nCapability: 0/368\n")
        assert run(arguments) == 0
        found = json.loads(capsys.readouterr().out)
        claim = next(claim for claim in found["claims"] if claim["name"] == "capability")
        after = {score["name"]: score for score in found["long_replies"]["after"]}
        assert claim["measured"] == after["capability"]["value"]

    def test_fits_into_80_columns(
        self,
        base: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        edited = exported(base, tmp_path / "e", "rank 1", "full", "merge")
        assert run(["compare", str(edited), str(base), "--no-scores"]) == 0
        lines = capsys.readouterr().out.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("5 of 30"))
        assert all(len(line) <= 80 for line in lines[start:])
        text = " ".join(lines[start:])
        assert "norm-preserving directional ablation" in text
        assert "model.layers.*.mlp.down_proj" in text
        assert "not measured" in text


@pytest.mark.parametrize(
    ("dtype", "relative", "kind"),
    [
        ("BF16", 0.001, "directional_ablation"),  # lost in the rounding of bfloat16
        ("BF16", 0.02, "fit"),
        ("F16", 0.001, "fit"),
        ("F32", 0.00001, "fit"),
    ],
)
def test_what_is_lost_in_rounding_does_not_tell_the_kind(
    dtype: str, relative: float, kind: str
) -> None:
    def row(kind: str, relative: float) -> TensorDifference:
        return TensorDifference(
            "a.weight", (4, 4), dtype, dtype, kind, relative, rank=1, reads_output=True
        )

    assert kind_of([row("ablation", 0.03), row("low_rank", relative)]) == kind
