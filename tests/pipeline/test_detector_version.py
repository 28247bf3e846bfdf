"""A run is searched with one version of the refusal detector only."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from heretic import pipeline
from heretic.config import Settings
from heretic.errors import RunError
from heretic.main import run
from heretic.refusals import VERSION
from heretic.runs.folder import RunFolder
from heretic.runs.manifest import FIRST_DETECTOR, RunManifest
from heretic.scorers import Scorer
from heretic.scorers.keyword import KeywordRefusals
from heretic.scorers.refusal import RefusalDetector

EARLIER = Path(__file__).parents[1] / "data" / "earlier_run"
AGAIN = ["--n-trials", "2", "--model-action", "none", "--search", "tpe", "--force"]


def manifest(**found: object) -> RunManifest:
    return RunManifest("model", "digest", 1, {}, {}, found=found)


def scorer(kind: type[Scorer], optimization: str = "minimize") -> Scorer:
    return kind(Settings(model="m"), name="refusals", optimization=optimization)  # type: ignore[arg-type]


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """Everything that a command printed, in one line."""
    return " ".join("".join(capsys.readouterr()).split())


class TestOtherDetector:
    @pytest.mark.parametrize("found", [{}, {"detector": VERSION + 1}])
    def test_an_objective_of_another_version_ends_the_search(self, found: dict[str, object]):
        objectives = [scorer(RefusalDetector)]
        told = pipeline.other_detector(manifest(**found), objectives)
        assert told is not None
        assert f"version {found.get('detector', FIRST_DETECTOR)} " in told
        with pytest.raises(RunError, match="cannot go on") as raised:
            pipeline.check_detector(manifest(**found), objectives, Path("folder"))
        assert "checkpoint_action = restart" in str(raised.value.remedy)

    @pytest.mark.parametrize(
        ("recorded", "scorers"),
        [
            (manifest(detector=VERSION), [scorer(RefusalDetector)]),
            (manifest(), [scorer(KeywordRefusals)]),
            (manifest(), [scorer(KeywordRefusals), scorer(RefusalDetector, "none")]),
        ],
    )
    def test_other_runs_go_on(self, recorded: RunManifest, scorers: Sequence[Scorer]):
        assert pipeline.other_detector(recorded, scorers) is None
        pipeline.check_detector(recorded, scorers, Path("folder"))

    def test_a_damaged_version_is_an_error(self):
        with pytest.raises(RunError, match="detector"):
            pipeline.other_detector(manifest(detector="two"), [scorer(RefusalDetector)])


class TestCommand:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
        """A run of a tiny model whose objective is the detector."""
        for name in ("model", "good.txt", "bad.txt", "config.toml"):
            source = EARLIER / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
        config = tmp_path / "config.toml"
        text = config.read_text(encoding="utf-8").replace(
            'plugin = "keyword"', 'plugin = "refusal"'
        )
        config.write_text(text, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        assert run(AGAIN) == 0
        (path,) = Path("checkpoints").iterdir()
        return RunFolder(path)

    def age(self, folder: RunFolder) -> None:
        """Make it a run of a release that recorded no version."""
        recorded = folder.require_manifest()
        assert recorded.detector == VERSION
        found = {key: value for key, value in recorded.found.items() if key != "detector"}
        folder.write_manifest(replace(recorded, found=found))

    def test_it_goes_on_only_as_a_new_search(self, folder: RunFolder):
        self.age(folder)
        trials = folder.read_trials()
        for more in ([], ["--checkpoint-action", "continue"]):
            with pytest.raises(RunError, match=f"version {FIRST_DETECTOR} of the refusal detector"):
                run([*AGAIN, *more])
            assert folder.read_trials() == trials
        assert run([*AGAIN, "--checkpoint-action", "restart"]) == 0
        assert folder.require_manifest().detector == VERSION

    def test_its_trials_can_still_be_saved(
        self, folder: RunFolder, capsys: pytest.CaptureFixture[str]
    ):
        self.age(folder)
        saved = ["--model-action", "save", "--save-directory", "edited"]
        kind = ["--export-strategy", "merge", "--trial-index", "0"]
        assert run(["export", str(folder.path), *saved, *kind]) == 0
        assert (Path("edited") / "model.safetensors").is_file()
        assert "cannot be compared" in shown(capsys)
