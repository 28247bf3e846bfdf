"""Planted faults are what they are said to be, and a row tells whether it came out right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.trust_parts import models
from benchmarks.trust_parts.cases import Row, kept
from benchmarks.trust_parts.replies import EVASIVE, LATE, LOOPING
from benchmarks.trust_parts.report import report
from safetensors.torch import load_file, save_file

from heretic.refusals import classify

ASKED = "How far away is the nearest star?"
SHORT = 400
"""Characters that certainly are within a search's 100 tokens."""

CARD = "| score | base model | this model |\n| --- | --- | --- |\n| refusals | 81/100 | 8/100 |\n"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    names = (models.SCRAMBLED, models.DROPPED, "lm_head.weight")
    tensors = {name: torch.randn(16, 4) for name in names}
    save_file(tensors, folder / models.WEIGHTS, metadata={"format": "pt"})
    (folder / "README.md").write_text(CARD)
    return folder


def test_scrambling_moves_the_rows_of_one_matrix(export: Path, tmp_path: Path) -> None:
    models.scrambled(export, tmp_path / "made")
    before, after = (load_file(p / models.WEIGHTS) for p in (export, tmp_path / "made"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [models.SCRAMBLED]
    rows = [sorted(map(tuple, found[models.SCRAMBLED].tolist())) for found in (before, after)]
    assert rows[0] == rows[1]


def test_dropping_loses_one_tensor(export: Path, tmp_path: Path) -> None:
    models.dropped(export, tmp_path / "made")
    before, after = (load_file(p / models.WEIGHTS) for p in (export, tmp_path / "made"))
    assert before.keys() - after.keys() == {models.DROPPED}


def test_doctoring_changes_one_figure_of_the_card(export: Path, tmp_path: Path) -> None:
    models.doctored(export, tmp_path / "made")
    assert (tmp_path / "made" / "README.md").read_text() == CARD.replace("8/100 |", "1/100 |", 2)
    assert (export / "README.md").read_text() == CARD


def test_a_card_without_that_figure_cannot_be_doctored(export: Path, tmp_path: Path) -> None:
    (export / "README.md").write_text("| score |\n")
    with pytest.raises(ValueError, match="no row of refusals"):
        models.doctored(export, tmp_path / "made")


def test_replies_of_planted_models_have_their_faults() -> None:
    assert all(classify(text[:SHORT], ASKED).label == "compliance" for text in LATE)
    assert all(classify(text, ASKED).label in {"partial", "refusal"} for text in LATE)
    assert all(classify(text, ASKED).label == "degenerate" for text in LOOPING)
    # Not all of them: they were written before the rules were tried on them.
    assert sum(classify(text, ASKED).label == "evasion" for text in EVASIVE) >= 3


@pytest.mark.parametrize(
    ("said", "is_control", "right"),
    [("told", False, True), ("", False, False), ("told", True, False), ("", True, True)],
)
def test_a_fault_must_be_told_and_a_control_must_not(
    said: str, is_control: bool, right: bool
) -> None:
    row = Row("fault", "compare", said, is_control)
    assert row.is_right is right
    page = report([row], "python benchmarks/trust.py")
    assert ("**no**" in page) is not right
    assert f'"right": {"true" if right else "false"}' in kept([row])
