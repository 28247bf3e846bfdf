"""A run folder of an earlier release goes on: it lists, resumes in its own folder, and exports.

`tests/data/earlier_run` was made on 2026-11-28 with `heretic --n-trials 6` in that folder: model,
prompts and `config.toml` are what that command read, `checkpoints` is what it left. Never renew it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from heretic.main import run
from heretic.runs.folder import RunFolder

EARLIER = Path(__file__).parents[1] / "data" / "earlier_run"
NAME = "model-c3edcba1f056"
FOLDER = Path("checkpoints") / NAME


@pytest.fixture(autouse=True)
def in_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of everything as working directory."""
    copy = tmp_path / "copy"
    shutil.copytree(EARLIER, copy)
    monkeypatch.chdir(copy)


def test_it_lists(capsys: pytest.CaptureFixture[str]):
    assert run(["runs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["path"] == str(FOLDER)
    assert (row["model"], row["completed"], row["front"]) == ("model", 6, 2)
    assert row["note"] is None


def test_it_resumes_under_its_own_name():
    before = RunFolder(FOLDER).read_trials()
    assert (
        run(["--n-trials", "7", "--checkpoint-action", "continue", "--model-action", "none"]) == 0
    )
    assert [path.name for path in FOLDER.parent.iterdir()] == [NAME]
    after = RunFolder(FOLDER).read_trials()
    assert after[:6] == before
    assert len(after) == 7


def test_it_exports(capsys: pytest.CaptureFixture[str]):
    saved = ["--model-action", "save", "--save-directory", "edited", "--export-strategy", "merge"]
    assert run(["export", str(FOLDER), "--trial-index", "0", *saved]) == 0
    record = json.loads((Path("edited") / "abliteration_params.json").read_text(encoding="utf-8"))
    (first, _) = json.loads((FOLDER / "front.json").read_text(encoding="utf-8"))
    assert record["plan"] == first["plan"]
    edited = load_file(Path("edited") / "model.safetensors")
    original = load_file(Path("model") / "model.safetensors")
    changed = {name for name in original if not edited[name].equal(original[name])}
    assert changed
    assert all(name.endswith(("o_proj.weight", "down_proj.weight")) for name in changed)


def test_it_exports_where_no_run_could_be_begun():
    FOLDER.rename("elsewhere")
    FOLDER.parent.rmdir()
    FOLDER.parent.touch()
    saved = ["--model-action", "save", "--save-directory", "edited", "--export-strategy", "merge"]
    assert run(["export", "elsewhere", "--trial-index", "0", *saved]) == 0
    assert (Path("edited") / "model.safetensors").is_file()
