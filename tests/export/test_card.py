"""The model card is true and complete, and invents nothing."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from tests.support import export_case

import heretic
from heretic.config import Settings
from heretic.export.documents.base_card import (
    base_metadata,
    carried_over,
    front_matter,
)
from heretic.export.documents.card import get_readme_intro, model_card, scores_table
from heretic.export.request import ExportRequest, Strategy
from heretic.records import Score, Trial
from heretic.system.hub import base_folder

MODEL = "org/Base-1B"


@pytest.fixture
def wanted() -> ExportRequest:
    return export_case.request(export_case.settings(Path(MODEL)))


@pytest.mark.parametrize("strategy", ["merge", "adapter"])
def test_metadata_are_what_the_hub_reads(wanted: ExportRequest, strategy: Strategy) -> None:
    data = ModelCard(model_card(wanted, strategy, {"license": "apache-2.0"})).data.to_dict()
    assert data["base_model"] == MODEL
    assert data["license"] == "apache-2.0"
    assert {"heretic", "abliterated", "uncensored", "decensored"} <= set(data["tags"])
    assert data["pipeline_tag"] == "text-generation"
    assert data["library_name"] == ("peft" if strategy == "adapter" else "transformers")
    assert data["base_model_relation"] == ("adapter" if strategy == "adapter" else "finetune")


@pytest.mark.parametrize("strategy", ["merge", "adapter"])
def test_it_says_what_was_done_and_what_that_means(
    wanted: ExportRequest, strategy: Strategy
) -> None:
    text = model_card(wanted, strategy, {"license": "apache-2.0"})
    words = " ".join(text.replace("\n> ", " ").split())
    assert f"[{MODEL}](https://huggingface.co/{MODEL})" in text
    assert "| refusals | 18/20 | 2/20 |" in text
    assert "| KL divergence | 0.0000 | 0.0625 |" in text
    assert "| attn.o_proj | 1.2 | 1 | 0.4 | 1.5 |" in text
    assert "global, at layer 1.25" in text
    assert "Row normalization: full" in text
    assert "safety behaviour of this model was changed on purpose" in words
    assert "may answer requests that the original declines" in words
    assert "is your responsibility" in words
    assert "licence" in words
    assert "heretic reproduce reproduce.json" in text
    assert heretic.__version__ in text
    assert "{{" not in text
    assert "{%" not in text


def test_it_names_the_method(wanted: ExportRequest) -> None:
    text = " ".join(model_card(wanted, "merge").split())
    assert "method is directional ablation" in text
    assert "Nothing was trained" in text
    trial = replace(wanted.trial, plan=export_case.fitted_plan())
    text = " ".join(model_card(replace(wanted, trial=trial), "merge").split())
    assert "The method is a fit" in text
    assert "were trained on the prompts for directions" in text
    assert "Nothing was trained" not in text
    assert "directional ablation" not in text


@pytest.mark.parametrize("strategy", ["merge", "adapter"])
def test_the_code_in_it_is_python(wanted: ExportRequest, strategy: Strategy) -> None:
    text = model_card(wanted, strategy)
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    ast.parse(code)
    assert ("PeftModel" in code) == (strategy == "adapter")


def test_an_adapter_names_its_kind(wanted: ExportRequest) -> None:
    assert "A DoRA adapter of rank 1" in model_card(wanted, "adapter")
    plain = replace(wanted, trial=replace(wanted.trial, plan=export_case.plan("pre")))
    assert "A LoRA adapter of rank 1" in model_card(plain, "adapter")


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_several_directions_are_told(wanted: ExportRequest, rank: int) -> None:
    of_rank = replace(wanted, trial=replace(wanted.trial, plan=export_case.plan(rank=rank)))
    text = model_card(of_rank, "adapter")
    assert f"A DoRA adapter of rank {rank} for" in text
    assert (f"global, at layer 1.25, {rank} per layer." in text) == (rank > 1)
    assert ("global, at layer 1.25. " in text) == (rank == 1)


def test_a_free_form_kernel_is_told_by_its_extremes(wanted: ExportRequest) -> None:
    free = replace(wanted, trial=replace(wanted.trial, plan=export_case.free_plan()))
    text = model_card(free, "merge")
    assert "| component | max weight | at layer | min weight | within layers |" in text
    assert "| attn.o_proj | 1.2 | 0 | -0.3 | free |" in text
    assert "| mlp.down_proj | 1.1 | 2 | 0 | free |" in text


def test_no_licence_is_invented(wanted: ExportRequest) -> None:
    text = model_card(wanted, "merge", {})
    assert "license" not in front_matter(text)
    assert "Find it and follow it" in text
    assert "Find it and follow it" not in model_card(wanted, "merge", {"license": "mit"})


def test_verified_figures_replace_those_of_the_search(wanted: ExportRequest) -> None:
    before = model_card(wanted, "merge")
    assert "not yet on these files" in before
    measured = (Score("refusals", 0.15, "minimize", "3/20"), export_case.SCORES[1])
    after = model_card(replace(wanted, verified=measured), "merge")
    assert "| refusals | 18/20 | 3/20 |" in after
    assert "reloaded from disk after saving" in after


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"behavior": "humour"}, "shows less of a behaviour: humour."),
        ({"behavior": "calibrate"}, "declines fewer requests that need not be declined."),
        ({"behavior": "harden"}, "declines more of the requests that should be declined."),
        ({"goal": "induce"}, "shows more of a behaviour: what its bad prompts trigger."),
    ],
)
def test_other_aims_are_not_called_decensoring(values: dict[str, str], said: str) -> None:
    settings = Settings.restore({"model": MODEL, **values})
    text = model_card(export_case.request(settings), "merge", {"license": "mit"})
    words = " ".join(text.replace("\n> ", " ").split())
    assert said in words
    assert f"# {MODEL}, edited" in text
    assert "may answer requests that the original declines" in words
    assert "habit of declining" not in words
    assert "decensored" not in text
    assert {"heretic", "abliterated"} == set(front_matter(text)["tags"])


def test_a_local_base_is_named_without_its_place(tmp_path: Path) -> None:
    base = tmp_path / "someone" / "Tiny-Base"
    base.mkdir(parents=True)
    wanted = export_case.request(export_case.settings(base))
    for strategy in ("merge", "adapter"):
        text = model_card(wanted, strategy)
        assert str(tmp_path) not in text
        assert "someone" not in text
        assert not {"base_model", "base_model_relation"} & front_matter(text).keys()
        assert "huggingface.co/Tiny-Base" not in text
        assert "# Tiny-Base, decensored" in text


def test_names_cannot_break_out_of_the_metadata() -> None:
    model = 'org/x\n---\nlicense: mit\ntags: ["'
    wanted = export_case.request(export_case.settings(Path("x")).replaced(model=model))
    data = front_matter(model_card(wanted, "merge"))
    assert "license" not in data
    assert "heretic" in data["tags"]


def test_scores_without_a_counterpart_are_said_to_be_unmeasured() -> None:
    extra = Score("style", 0.5, "none", "50|50")
    table = scores_table((extra,), export_case.SCORES)
    assert "| refusals | not measured | 2/20 |" in table
    assert "| KL divergence | 0 (by definition) | 0.0625 |" in table
    assert "| style | 50\\|50 | not measured |" in table


def test_get_readme_intro_is_the_head_of_the_card() -> None:
    trial = Trial(3, export_case.plan(), export_case.SCORES)
    evaluator = SimpleNamespace(baseline=export_case.BASELINE)
    text = get_readme_intro(MODEL, trial, evaluator)
    assert text.startswith(f"# {MODEL}, decensored\n")
    assert f"https://huggingface.co/{MODEL}" in text
    assert "| refusals | 18/20 | 2/20 |" in text
    assert "| mlp.down_proj | 0.9 | 2 | 0.1 | 1 |" in text
    assert "safety behaviour" in text
    assert not text.startswith("---")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: mit\n---\n# Title\n---\nx", {"license": "mit"}),
        ("\ufeff---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
        ("# Title\n---\nlicense: mit\n---", {}),
        ("---\nlicense: mit\n", {}),
        ("---\n[: broken\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("", {}),
    ],
)
def test_front_matter(text: str, expected: dict[str, str]) -> None:
    assert front_matter(text) == expected


def test_only_what_holds_for_the_edited_model_is_carried_over() -> None:
    base = {
        "license": "other",
        "license_name": "tiny-licence",
        "license_link": "./LICENSE.md",
        "language": ["en", "de"],
        "tags": ["safe", "aligned"],
        "model-index": [{"name": "scores of the base"}],
        "extra_gated_prompt": "x",
        "base_model": "org/older",
    }
    assert carried_over(base, "org/base") == {
        "license": "other",
        "license_name": "tiny-licence",
        "license_link": "https://huggingface.co/org/base/blob/main/LICENSE.md",
        "language": ["en", "de"],
    }
    assert carried_over({"license_link": "https://x.example/l"}, "org/base") == {
        "license_link": "https://x.example/l"
    }


def test_the_licence_comes_from_the_folders_own_card(tmp_path: Path) -> None:
    assert base_metadata(str(tmp_path)) == {}
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    assert base_metadata(str(tmp_path)) == {"license": "gemma"}
    assert base_folder(str(tmp_path)) == tmp_path


def test_a_base_that_is_not_at_hand_gives_nothing() -> None:
    assert base_metadata("org/nowhere") == {}
    assert base_folder("org/nowhere") is None
    assert base_folder("not a valid id!") is None


def test_figures_from_a_reproduction_file_are_not_called_measured(wanted: ExportRequest) -> None:
    recorded = replace(wanted, verified=wanted.trial.scores, as_recorded=True)
    text = model_card(recorded, "merge")
    assert "As recorded in the reproduce.json" in text
    assert "Measured on these files" not in text
