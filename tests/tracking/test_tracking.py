"""Trackers: what they are told, with the real libraries, offline; and that they end no search."""

from __future__ import annotations

import math
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heretic.config import Settings, load_settings
from heretic.errors import SettingsError
from heretic.events import (
    Event,
    Notice,
    SearchFinished,
    SearchStarted,
    StageStarted,
    TrialFinished,
    TrialStarted,
)
from heretic.main import run
from heretic.records import Plan, Score, Trial
from heretic.tracking.figures import figures_in, figures_of
from heretic.tracking.reporter import check_tracker, tracking

EARLIER = Path(__file__).parents[1] / "data" / "earlier_run"
RUN = "0123456789ab"
SECRET = "a secret prompt"
PLAN = Plan.create(
    direction_scope="per layer", direction_index=None, kernels={}, row_normalization="none"
)


class Heard:
    """A reporter that keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.warnings.append(event.text)


def options(track: str | None, address: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(track=track, track_address=address)


def finished(number: int, *scores: Score, failure: str | None = None) -> TrialFinished:
    trial = Trial(
        number, PLAN, scores, "failed" if failure else "complete", failure, seconds=number + 0.5
    )
    return TrialFinished(trial, [trial], number + 1, 3, float(number), None)


def refusals(value: float, **more: Any) -> Score:
    return Score("refusals", value, "minimize", f"{value * 100:g}/100", **more)


def search(heard: Heard, track: str, numbers: range, address: str | None = None) -> None:
    """The events of a search, told to a tracker."""
    settings = {"n_trials": 3, "racing": True, "model": SECRET, "seed": None, "batch": {"a": 1}}
    given = options(track, address)
    with tracking(given, RUN, settings, heard, last_seconds=200) as (tracker,):
        tracker.emit(SearchStarted(0, 3, (refusals(0.9),)))
        tracker.emit(Notice(SECRET))
        tracker.emit(StageStarted(SECRET))
        for number in numbers:
            tracker.emit(finished(number, refusals(0.5 - number / 10)))
        tracker.emit(SearchFinished("done", 3, 5.0))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, which is the home of the libraries too."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


# --- figures ---------------------------------------------------------------------------


def test_only_numbers_are_told() -> None:
    found = figures_of(finished(2, refusals(0.25), Score("kl div/x", 0.1, "minimize", "0.1")))
    assert found is not None
    assert found["trial"] == 2
    assert found["seconds"] == 2.5
    assert found["score/refusals"] == found["front/first/refusals"] == 0.25
    assert found["score/kl_div_x"] == 0.1
    assert all(isinstance(value, float) for value in found.values())


def test_of_a_failed_trial_the_reason_is_not_told() -> None:
    found = figures_of(finished(1, failure=SECRET))
    assert found is not None
    assert found["failed"] == 1
    assert SECRET not in f"{found}"


def test_what_is_no_figure_is_left_out() -> None:
    scores = (
        refusals(0.5, bound=True),
        Score("kl", math.nan, "none", "-", withheld=True),
        Score("other", math.inf, "none", "inf"),
    )
    found = figures_of(finished(0, *scores))
    assert found is not None
    assert not [name for name in found if name.startswith("score/")]
    for event in (Notice(SECRET), StageStarted(SECRET), TrialStarted(0, 0, 3)):
        assert figures_of(event) is None


def test_settings_that_are_texts_paths_or_tables_are_left_out() -> None:
    settings = Settings.restore({"model": SECRET, "system_prompt": SECRET, "n_trials": 7})
    found = figures_in(settings.to_dict())
    assert found["n_trials"] == 7
    assert found["racing"] == 1
    assert {type(value) for value in found.values()} == {float}
    assert not {"model", "system_prompt", "study_checkpoint_dir", "scorers"} & set(found)


# --- the real libraries ----------------------------------------------------------------


def texts_in(place: Path) -> bytes:
    """All bytes of all files."""
    return b"\n".join(path.read_bytes() for path in place.rglob("*") if path.is_file())


@pytest.mark.slow
def test_mlflow_goes_on_with_its_run(folder: Path) -> None:
    pytest.importorskip("mlflow")
    heard = Heard()
    search(heard, "mlflow", range(2))
    search(heard, "mlflow", range(2, 3))
    assert heard.warnings == []
    with sqlite3.connect(folder / "mlflow.db") as database:
        runs = database.execute("select status, source_name, user_id, name from runs").fetchall()
        metrics = database.execute(
            "select step, value from metrics where key = 'score/refusals' order by step"
        ).fetchall()
        parameters = dict(database.execute("select key, value from params").fetchall())
        tags = {name for (name,) in database.execute("select key from tags")}
    assert runs == [("FINISHED", "", "unknown", RUN)]
    assert metrics == [(0, 0.5), (1, 0.4), (2, 0.3)]
    assert parameters == {"n_trials": "3.0", "racing": "1.0"}
    assert tags == {"heretic.run", "mlflow.runName"}
    assert SECRET.encode() not in texts_in(folder)


@pytest.mark.slow
def test_wandb_writes_a_folder_without_a_network(folder: Path) -> None:
    wandb = pytest.importorskip("wandb")
    heard = Heard()
    search(heard, "wandb", range(3))
    assert heard.warnings == []
    (written,) = (folder / "wandb").glob(f"offline-run-*-{RUN}/run-{RUN}.wandb")
    content = written.read_bytes()
    assert content.count(b"score/refusals") >= 3
    assert b"n_trials" in content
    assert wandb.__version__.encode() in content
    for text in (SECRET, str(folder), "pytest", "heretic.tracking"):
        assert text.encode() not in content
    assert not list(folder.rglob("requirements.txt"))
    assert not list(folder.rglob("wandb-metadata.json"))


# --- failures --------------------------------------------------------------------------


def test_a_tracker_that_fails_is_told_once(folder: Path) -> None:
    pytest.importorskip("mlflow")
    heard = Heard()
    search(heard, "mlflow", range(3), "nonsense://nowhere")
    (warning,) = heard.warnings
    assert warning.startswith("The tracker mlflow gets no more figures: ")
    assert warning.endswith("The search goes on.")
    assert "nonsense" in warning


def test_a_tracker_that_hangs_is_left_behind(folder: Path) -> None:
    pytest.importorskip("mlflow")
    heard = Heard()
    given = options("mlflow", "http://127.0.0.1:9")  # it tries again, for minutes
    with tracking(given, RUN, {}, heard, last_seconds=0.2) as (tracker,):
        for number in range(2000):  # more than the pipe holds
            tracker.emit(finished(number, refusals(0.5)))
    (warning,) = heard.warnings
    assert "The search goes on." in warning


def test_an_error_of_the_search_stays_its_own(folder: Path) -> None:
    pytest.importorskip("mlflow")
    heard = Heard()
    given = options("mlflow", "nonsense://nowhere")
    with pytest.raises(KeyboardInterrupt), tracking(given, RUN, {}, heard):
        raise KeyboardInterrupt
    assert len(heard.warnings) == 1


def test_without_a_tracker_nothing_starts() -> None:
    with tracking(options(None), RUN, {}, Heard()) as trackers:
        assert trackers == ()


# --- settings --------------------------------------------------------------------------


def test_a_tracker_that_is_not_installed_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("heretic.tracking.reporter.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"wandb is not installed.*\[track\]"):
        check_tracker(options("wandb"))


def test_an_address_without_a_tracker_is_refused() -> None:
    with pytest.raises(SettingsError, match="track to wandb"):
        check_tracker(options(None, "http://127.0.0.1:1"))


@pytest.mark.parametrize(
    "address", ["https://me:pass-word@host/x", "http://host/?token=abcdefghij"]
)
def test_an_address_holds_no_password(address: str) -> None:
    with pytest.raises(SettingsError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        load_settings({"model": "m", "track": "mlflow", "track_address": address})
    assert caught.value.remedy


def test_runs_do_not_depend_on_trackers() -> None:
    plain = Settings.restore({"model": "m", "seed": 1})
    tracked = plain.replaced(track="wandb", track_address="http://127.0.0.1:1")
    assert tracked.fingerprint() == plain.fingerprint()
    assert tracked.recorded() == plain.recorded()


@pytest.mark.slow
def test_a_search_tells_each_of_its_trials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    shutil.copytree(EARLIER, folder / "copy")
    monkeypatch.chdir(folder / "copy")
    options = ["--n-trials", "2", "--study-checkpoint-dir", "new", "--track", "mlflow"]
    assert run([*options, "--trial-index", "0", "--model-action", "none"]) == 0
    with sqlite3.connect("mlflow.db") as database:
        query = "select count(distinct step) from metrics where key = 'seconds'"
        assert database.execute(query).fetchone() == (2,)
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    (manifest,) = Path("new").glob("*/manifest.json")
    assert '"track' not in manifest.read_text()
