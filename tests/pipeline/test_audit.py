"""An export that fails its audit stays where it is, its card says so, and nothing is uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.support import tiny

from heretic.cli.main import main
from heretic.export import hub
from heretic.export import verify as verifying
from heretic.export.documents.write import FAILED_AUDIT

LOST = "model.layers.0.self_attn.q_proj.weight"
SETTINGS = """
batch_size = 4
max_response_length = 4
response_prefix = ""
seed = 1
n_trials = 1
search = "ablation"
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A whole search in a folder of its own, as arguments."""
    monkeypatch.chdir(tmp_path)
    tiny.folder(tmp_path / "model")
    tiny.prompt_files(tmp_path)
    (tmp_path / "config.toml").write_text(SETTINGS + tiny.PROMPT_TABLES)
    return ["model", "--force", "--trial-index", "0", "--export-strategy", "merge"]


def lose_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a fault in saving: one tensor is lost after the files were scored."""

    def verified(folder: Path, *arguments: Any, **options: Any) -> Any:
        scores = verify(folder, *arguments, **options)
        tensors = load_file(folder / "model.safetensors")
        del tensors[LOST]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return scores

    verify = verifying.verify
    monkeypatch.setattr(verifying, "verify", verified)


def test_a_sound_export_is_audited(
    job: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*job, "--model-action", "save", "--save-directory", "edited"]) == 0
    assert "they are what the plan and the card say" in capsys.readouterr().out
    assert FAILED_AUDIT not in (tmp_path / "edited" / "README.md").read_text()
    assert main(["audit", "edited"]) == 0
    assert main(["reproduce", "edited", "--save-directory", "again"]) == 0
    assert capsys.readouterr().out.count("they are what the plan and the card say") == 1


def test_the_files_stay_and_the_card_says_so(
    job: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lose_a_tensor(monkeypatch)
    assert main([*job, "--model-action", "save", "--save-directory", "edited"]) == 1
    told = capsys.readouterr()
    assert LOST in told.out
    assert "failed its audit" in told.err
    card = (tmp_path / "edited" / "README.md").read_text()
    assert FAILED_AUDIT in card
    assert LOST in card
    assert (tmp_path / "edited" / "model.safetensors").is_file()


def test_nothing_is_uploaded(
    job: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("an upload began")

    lose_a_tensor(monkeypatch)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(hub, "check_upload", lambda name: name)
    monkeypatch.setattr(hub, "upload", never)
    target = ["--upload-repo-id", "me/it", "--upload-repo-private"]
    assert main([*job, "--model-action", "upload", *target]) == 1
    assert "Nothing was uploaded" in capsys.readouterr().err
    (kept,) = tmp_path.glob("heretic-not-uploaded-*/model")
    assert FAILED_AUDIT in (kept / "README.md").read_text()


def test_apply_is_audited_too(
    job: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*job, "--model-action", "save", "--save-directory", "edited"]) == 0
    lose_a_tensor(monkeypatch)
    plan = tmp_path / "edited" / "abliteration_params.json"
    assert main(["apply", "model", str(plan), "--save-directory", "other"]) == 1
    assert LOST in capsys.readouterr().out
