"""Trackers: what they are told, with the real libraries, offline; and that they end no search."""

from __future__ import annotations

import math
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tests.support.process_words import words_of

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
from heretic.runs.folder import RunFolder
from heretic.tracking.figures import figures_in, figures_of
from heretic.tracking.reporter import check_tracker, tracking

EARLIER = Path(__file__).parents[1] / "data" / "earlier_run"
RUN, OTHER = "0123456789ab-00000000", "0123456789ab-11111111"
SECRET = "a secret prompt"
PLAN = Plan.create(
    direction_scope="per layer", direction_index=None, kernels={}, row_normalization="none"
)


class Heard:
    """A reporter that keeps warnings and titles of stages; an interruption comes at the end."""

    def __init__(self, *, interrupts: bool = False) -> None:
        self.warnings: list[str] = []
        self.stages: list[str] = []
        self._interrupts = interrupts

    def emit(self, event: Event) -> None:
        if isinstance(event, Notice) and event.level == "warning":
            self.warnings.append(event.text)
        if isinstance(event, StageStarted) and event.title != SECRET:
            self.stages.append(event.title)
            if self._interrupts:
                raise KeyboardInterrupt


def options(track: str | None, address: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(track=track, track_address=address)


def finished(number: int, *scores: Score, failure: str | None = None) -> TrialFinished:
    trial = Trial(
        number, PLAN, scores, "failed" if failure else "complete", failure, seconds=number + 0.5
    )
    return TrialFinished(trial, [trial], number + 1, 3, float(number), None)


def refusals(value: float, **more: Any) -> Score:
    return Score("refusals", value, "minimize", f"{value * 100:g}/100", **more)


def search(
    heard: Heard,
    track: str,
    numbers: range,
    address: str | None = None,
    *,
    run: str = RUN,
    reason: str = "done",
) -> None:
    """The events of a search, told to a tracker."""
    settings = {"n_trials": 3, "racing": True, "model": SECRET, "seed": None, "batch": {"a": 1}}
    given = options(track, address)
    with tracking(given, lambda: run, settings, heard, last_seconds=200) as tracker:
        tracker.emit(SearchStarted(0, 3, (refusals(0.9),)))
        tracker.emit(Notice(SECRET))
        tracker.emit(StageStarted(SECRET))
        for number in numbers:
            tracker.emit(finished(number, refusals(0.5 - number / 10)))
        tracker.emit(SearchFinished(reason, 3, 5.0))


def trackers() -> list[psutil.Process]:
    """The processes of trackers that this one has started."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "heretic.tracking" in words_of(child)]


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


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
    search(heard, "mlflow", range(2), reason="interrupted")
    search(heard, "mlflow", range(2, 3))
    search(heard, "mlflow", range(1), run=OTHER, reason="failed")
    assert heard.warnings == []
    with sqlite3.connect(folder / "mlflow.db") as database:
        runs = database.execute("select status, source_name, user_id, name from runs").fetchall()
        metrics = database.execute(
            "select step, value from metrics join runs using (run_uuid) "
            "where key = 'score/refusals' and name = ? order by step",
            (RUN,),
        ).fetchall()
        parameters = dict(database.execute("select key, value from params").fetchall())
        tags = {name for (name,) in database.execute("select key from tags")}
    expected = [("FINISHED", "", "unknown", RUN), ("FAILED", "", "unknown", OTHER)]
    assert sorted(runs) == sorted(expected)
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
    assert "The search goes on." not in warning  # it failed after the end
    assert "nonsense" in warning


def test_a_tracker_that_hangs_is_ended(folder: Path, silent_server: str) -> None:
    pytest.importorskip("mlflow")
    heard = Heard()
    given = options("mlflow", silent_server)
    with tracking(given, lambda: RUN, {}, heard, last_seconds=0.2) as tracker:
        assert len(trackers()) == 1
        for number in range(2000):  # more than the pipe holds
            tracker.emit(finished(number, refusals(0.5)))
    (warning,) = heard.warnings
    assert "The search goes on." in warning
    assert trackers() == []


def test_an_interruption_at_the_end_leaves_no_process(folder: Path, silent_server: str) -> None:
    pytest.importorskip("mlflow")
    heard = Heard(interrupts=True)
    given = options("mlflow", silent_server)
    with pytest.raises(KeyboardInterrupt), tracking(given, lambda: RUN, {}, heard):
        assert len(trackers()) == 1
    assert trackers() == []
    (stage,) = heard.stages
    assert "60 s at most" in stage


def test_a_tracker_that_cannot_start_ends_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    heard = Heard()
    monkeypatch.setattr("sys.executable", str(folder / "no-such-program"))
    with tracking(options("mlflow"), lambda: RUN, {}, heard) as reporter:
        assert reporter is heard
    (warning,) = heard.warnings
    assert "cannot be started" in warning


def test_an_error_of_the_search_stays_its_own(folder: Path) -> None:
    pytest.importorskip("mlflow")
    heard = Heard()
    given = options("mlflow", "nonsense://nowhere")
    with pytest.raises(KeyboardInterrupt), tracking(given, lambda: RUN, {}, heard):
        raise KeyboardInterrupt
    assert len(heard.warnings) == 1


def test_without_a_tracker_nothing_starts() -> None:
    heard = Heard()
    with tracking(options(None), lambda: RUN, {}, heard) as reporter:
        assert reporter is heard
        assert trackers() == []


# --- settings --------------------------------------------------------------------------


def test_a_tracker_that_is_not_installed_is_told_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "wandb").mkdir()  # what `wandb` leaves there offline is no package
    monkeypatch.syspath_prepend(folder)
    nothing = {"wandb": ("no-such-distribution",)}
    monkeypatch.setattr("heretic.tracking.reporter.DISTRIBUTIONS", nothing)
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


def test_a_run_that_is_restarted_is_another_to_trackers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "model-0123456789ab")
    with folder.lock():
        first = folder.tracking_id()
        assert first.startswith("0123456789ab-")
        assert RunFolder(folder.path).tracking_id() == first
        folder.discard()
        assert folder.tracking_id() != first


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
