"""Two commands with run folders of their own, one model and one storage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import tiny, worker_case
from tests.support.shared_case import hastened

from heretic.cli.main import run
from heretic.errors import HereticError, RunError, StudyError
from heretic.pipeline import sharing
from heretic.runs.folder import RunFolder
from heretic.search.sweep import SweepOptions
from heretic.system.machine import versions

SHARED_FILES = ("directions.safetensors", "sweep.json", "fits/")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with hastened():
        yield worker_case.make_place(tmp_path)


def searched(place: Path, who: str, **values: Any) -> RunFolder:
    """A search of one process, with a run folder of its own."""
    file = place / f"{who}.toml"
    own = {"storage": f"sqlite:///{place / 'study.db'}", "study_checkpoint_dir": str(place / who)}
    settings = worker_case.settings_in(place, **{"max_response_length": 2, **own, **values})
    file.write_text(worker_case.as_toml({k: v for k, v in settings.items() if v is not None}))
    assert run(["--config", str(file), "--model-action", "none"]) == 0
    (folder,) = [path.parent for path in (place / who).glob("*/manifest.json")]
    return RunFolder(folder)


def begun_with(folder: RunFolder) -> dict[str, str]:
    """Digests of what all run folders must share."""
    files = folder.require_manifest().files
    return {name: m.sha256 for name, m in files.items() if name.startswith(SHARED_FILES)}


def test_the_second_takes_tensors_and_trials_of_the_first(place: Path, monkeypatch):
    """Neither has a seed: both find the same run."""
    few = SweepOptions(trade_offs=(0.2, 0.5, 1.25))
    monkeypatch.setattr("heretic.search.beginning._swept.__defaults__", (few,))
    first = searched(place, "a", n_trials=2, search="gradient", seed=None)
    made = first.read_trials()
    monkeypatch.setattr("heretic.pipeline.known.model_and_directions", pytest.fail)
    monkeypatch.setattr("heretic.search.beginning.sweep_plans", pytest.fail)
    second = searched(place, "b", n_trials=3, search="gradient", seed=None)
    assert {"directions.safetensors", "sweep.json"} <= set(begun_with(first))
    assert begun_with(second) == begun_with(first)
    assert second.read_trials()[:2] == made
    assert len(second.read_trials()) == 3


def test_whoever_would_score_otherwise_is_refused(place: Path, monkeypatch):
    first = searched(place, "a", n_trials=1)
    newer = {**versions(), "torch": "99.0"}
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "versions", lambda: newer)
        with pytest.raises(StudyError, match=r"cannot join .* it has torch 99\.0 and not "):
            searched(place, "b", n_trials=2)
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "detector_version", lambda _: 99)
        with pytest.raises(StudyError, match=r"it has refusal detector 99 and not "):
            searched(place, "a", n_trials=2)
    assert len(first.read_trials()) == 1
    manifest = first.manifest_path.read_text()
    assert "study.db" not in manifest
    assert "storage" not in json.loads(manifest)["settings"]
    tiny.folder(place / "other" / "Tiny-Base", seed=1)
    shutil.rmtree(place / "Tiny-Base")
    shutil.copytree(place / "other" / "Tiny-Base", place / "Tiny-Base")
    with pytest.raises(StudyError, match="a model of the same name, but the model's files differ"):
        searched(place, "c", n_trials=2)


def test_a_run_that_began_elsewhere_is_refused_and_one_alone_can_join(place: Path, capsys):
    alone = searched(place, "a", n_trials=2, storage=None)
    before = alone.read_trials()
    capsys.readouterr()
    assert searched(place, "a", n_trials=3).read_trials()[:2] == before
    assert "now holds the run's 2 trials" in capsys.readouterr().out
    shutil.rmtree(place / "a")  # all of it comes back from the storage
    assert searched(place, "a", n_trials=3).read_trials()[:2] == before
    folder = RunFolder(alone.path)
    with folder.lock():
        folder.save_directions(folder.load_directions() * 0.5)
    with pytest.raises(RunError, match=r"did not begin as the study .* directions"):
        searched(place, "a", n_trials=4)
    assert len(alone.read_trials()) == 3


def test_a_storage_that_cannot_be_used_is_said_before_any_work(place: Path):
    for address, said in {
        "postgresql://me:canary-7f3a9c@127.0.0.1:1/x": "does not answer",
        "oracle://me:canary-7f3a9c@host/x": "not the address of a storage",
        "sqlite://": "in memory",
        "grpc://host": "not the address of a gRPC proxy",
    }.items():
        with pytest.raises(HereticError, match=said) as caught:
            searched(place, "a", storage=address)
        assert "canary" not in str(caught.value)
    assert not (place / "a").exists()
