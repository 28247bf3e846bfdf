"""What the card and the notices say of other programs: the code runs, vLLM's limits are kept."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import export_case, tiny

from heretic.export.documents.card import model_card
from heretic.export.request import Strategy
from heretic.export.saving import save
from heretic.export.serving import adapter_text, vllm_options
from heretic.records.plan import Plan, RowNormalization


@pytest.mark.parametrize("strategy", ["merge", "adapter"])
@pytest.mark.parametrize("variant", ["none", "full"])
def test_the_code_of_the_card_runs(
    strategy: Strategy,
    variant: RowNormalization,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    base = tiny.folder(tmp_path / "Tiny-Base")
    model = export_case.load(base, **export_case.prompt_files(tmp_path))
    plan, directions = export_case.plan(variant), export_case.basis()
    wanted = export_case.request(model.settings, plan, directions=directions)
    folder = save(model, wanted, tmp_path / "edited", strategy=strategy)
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)  # the card names the base by its folder's name
    names = {"path": "edited"}
    exec(code, names)
    assert capsys.readouterr().out.strip()
    if strategy == "adapter" and variant == "full":  # as the card says for vLLM
        for line in re.findall(r"`((?:model|tokenizer)\..*?)`", card):
            exec(line, names)
        assert (tmp_path / "merged" / "config.json").is_file()
        assert (tmp_path / "merged" / "tokenizer.json").is_file()


def card(strategy: Strategy, plan: Plan) -> str:
    wanted = export_case.request(export_case.settings(Path("org/Base-1B")))
    return model_card(replace(wanted, trial=replace(wanted.trial, plan=plan)), strategy)


def test_a_plain_lora_is_served_by_vllm():
    text = card("adapter", export_case.plan("none"))
    assert "`vllm serve org/Base-1B --enable-lora --lora-modules edited=PATH`" in text
    assert "not tried" in text


def test_a_dora_is_merged_for_vllm():
    text = card("adapter", export_case.plan("full"))
    assert "vLLM does not load DoRA adapters" in text
    assert "--enable-lora" not in text
    assert "save_pretrained" in text


def test_a_whole_model_is_served_by_vllm():
    assert "`vllm serve PATH`" in card("merge", export_case.plan("full"))


@pytest.mark.parametrize(
    ("rank", "options"),
    [
        (1, "--enable-lora"),
        (16, "--enable-lora"),
        (17, "--enable-lora --max-lora-rank 32"),
        (257, "--enable-lora --max-lora-rank 320"),
        (512, "--enable-lora --max-lora-rank 512"),
        (513, None),
    ],
)
def test_ranks_that_vllm_takes(rank: int, options: str | None):
    assert vllm_options(rank) == options
    text = adapter_text(export_case.free_plan("none", rank))
    assert (options or "512 at most") in text


def test_a_dora_is_told_before_the_work():
    assert "DoRA" in adapter_text(export_case.free_plan("full"))
    assert "--export-strategy merge" in adapter_text(export_case.free_plan("full"))
