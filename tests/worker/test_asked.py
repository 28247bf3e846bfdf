"""The settings of a request: as on the command line, but only the request gives consent."""

from __future__ import annotations

from pathlib import Path

import pytest

from heretic.errors import ModelError, SettingsError
from heretic.events import Silent
from heretic.worker.answers import inspected
from heretic.worker.asked import layers_of, settings_of
from heretic.worker.protocol import Inspect


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_environment_and_files_lie_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("n_trials = 3\npatience = 4\nseed = 5\n")
    monkeypatch.setenv("HERETIC_PATIENCE", "40")
    found = settings_of({"model": "org/name", "seed": 50}, Silent())
    assert (found.n_trials, found.patience, found.seed) == (3, 40, 50)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"modell": "org/name"}, "Unknown setting modell in the request.*model"),
        ({"model": "org/name", "n_trials": "many"}, "Setting n_trials"),
        ({"model": "org/name", "good_prompts": {"spilt": "x"}}, "good_prompts.spilt"),
        ({}, "No model is named"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        settings_of(values, Silent())


@pytest.mark.parametrize("place", ["file", "environment"])
def test_only_the_request_lets_code_of_others_run(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "file":
        (tmp_path / "config.toml").write_text("trust_remote_code = true\n")
    else:
        monkeypatch.setenv("HERETIC_TRUST_REMOTE_CODE", "true")
    with pytest.raises(SettingsError, match="would let code of others run"):
        settings_of({"model": "org/name"}, Silent())
    allowed = settings_of({"model": "org/name", "trust_remote_code": True}, Silent())
    assert allowed.trust_remote_code
    refused = settings_of({"model": "org/name", "trust_remote_code": False}, Silent())
    assert not refused.trust_remote_code


def test_nor_does_a_scorer_of_others_come_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[[scorers]]\nplugin = "own.py:Own"\n')
    with pytest.raises(SettingsError, match="would let code of others run"):
        settings_of({"model": "org/name"}, Silent())
    top, *below = layers_of({"model": "org/name"})
    assert top.consents
    assert not any(layer.consents for layer in below)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "one/two/three"])
def test_a_model_that_is_not_there_is_told_as_by_commands(name: str) -> None:
    with pytest.raises(ModelError, match=f"There is no folder {name}"):
        inspected(Inspect(settings={"model": name}), Silent())
