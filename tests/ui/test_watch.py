"""A run folder is followed while another process works on it; views are plain and safe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import page_case
from tests.support.search_case import evaluate, make_study

from heretic.events import (
    EvaluationProgress,
    Notice,
    SearchStarted,
    StageProgress,
    StageStarted,
    TrialFinished,
    TrialStarted,
)
from heretic.runs.events import EventsFile
from heretic.runs.folder import RunFolder
from heretic.ui import views, watch
from heretic.ui.charts import front_options, layers_options
from heretic.ui.watch import Watch, now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return page_case.make_run(tmp_path / "name-0123456789ab")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(watch, "LOCK_SECONDS", 0.0)


def looked(path: Path) -> Watch:
    found = Watch(path)
    found.look()
    return found


def test_a_run_is_read_as_the_report_reads_it(path: Path):
    found = looked(path)
    assert found.state == "finished"
    assert [trial.number for trial in found.trials] == [0, 1, 2]
    assert found.trials == RunFolder(path).read_trials()
    assert found.progress.ended == "done"


def test_a_trial_appears_by_its_event_and_gets_its_plan_from_the_journal(path: Path):
    found = looked(path)
    folder = RunFolder(path)
    with folder.lock():
        file = EventsFile(folder.events_path)
        file.write("CommandStarted", {"since": 0.0})
        file.emit(StageStarted("Loading model"))
        file.emit(StageProgress(2, 2, "shards"))
        found.look()
        shown = views.now_of(found, now(), found.state)
        assert (shown.state, shown.doing) == ("running", "Loading model 2/2 shards")
        file.emit(SearchStarted(3, 9, ()))
        found.look()
        reads = found.reads
        study = make_study(folder)
        study.run(evaluate, 4)
        last = study.trials[-1]
        file.emit(TrialStarted(last.number, 3, 9))
        file.emit(EvaluationProgress("replies", 5, 5))
        found.look()
        assert "trial 3, replies 5/5" in views.now_of(found, now(), found.state).doing
        file.emit(TrialFinished(last, study.front, 4, 9, 1.0, 60.0))
        found.look()
        assert found.reads == reads  # the journal was not read
        assert found.trials[-1].scores == last.scores
        shown = views.now_of(found, now(), found.state)
        assert shown.trials == "4 of 9 trials"
        assert shown.left.startswith("about ")
        view = views.trial_of(found, last.number, {})
        assert view is not None
        assert found.trial(last.number) == last
        assert view.plan == views.plan_lines(last.plan)
    found.look()
    assert found.state == "finished"


def test_half_a_line_and_nonsense_are_left_for_later(path: Path):
    found = looked(path)
    events = RunFolder(path).events_path
    count = found.version
    with events.open("ab") as file:
        file.write(b'{"at": "2026-01-02T03:04:05+00:00", "event": "Notice", "level": "info", "te')
        file.flush()
        found.look()
        assert found.version == count
        file.write(b'xt": "whole"}\nnonsense\n{"event": 3}\n[]\n{"at": 1, "event": "Notice"}\n')
    found.look()
    assert found.progress.notices[-1] == ("info", "whole")


def test_a_file_of_events_that_was_replaced_is_read_anew(path: Path):
    found = looked(path)
    events = RunFolder(path).events_path
    events.write_bytes(b"")
    found.look()
    EventsFile(events).emit(Notice("again"))
    found.look()
    assert found.progress.notices[-1] == ("info", "again")


def test_a_run_that_cannot_be_read_says_why(path: Path):
    RunFolder(path).manifest_path.write_text("{")
    found = looked(path)
    assert found.state == "unreadable"
    assert found.error
    assert views.chart_of(found) is None or found.trials


def test_a_run_that_becomes_readable_is_read(tmp_path: Path):
    found = looked(tmp_path / "name-0123456789ab")
    assert found.state == "unreadable"
    page_case.make_run(found.path)
    found.look()
    assert found.state == "finished"


def test_views_hold_no_character_that_deceives(path: Path):
    found = looked(path)
    assert found.data is not None
    view = views.trial_of(found, 0, {0: "trial 0 (knee)"})
    assert view is not None
    assert view.label == "trial 0 (knee)"
    texts = [
        text for one in view.exchanges for text in (one.prompt, *(r.text for r in one.replies))
    ]
    assert any("<script>" in text for text in texts)  # as text
    assert not any(hidden in text for text in texts for hidden in ("\x1b", "\u202e"))
    assert views.trial_of(found, 99, {}) is None


def test_the_picture_holds_each_trial_once_and_no_name_as_a_key(path: Path):
    found = looked(path)
    chart = views.chart_of(found)
    assert chart is not None
    assert sorted(point.number for point in chart.points) == [-1, 0, 1, 2]
    hostile = replace(chart, x_name=":alert(1)", y_name="{b}")
    options = front_options(hostile, 1)
    series = {one["name"]: one["data"] for one in options["series"]}
    assert [point[2] for name in views_roles() for point in series[name] if point[2] == 1] == [1]
    assert len(series["shown below"]) == 1
    lines = layers_options([views.Line(":alert(1)", (0.5, None))], ":alert(2)")
    allowed = {":color", ":borderColor", ":formatter"}
    for one in (options, lines):
        assert {key for key in keys_of(one) if key.startswith(":")} <= allowed


def views_roles() -> list[str]:
    return ["other trial", "front", "chosen", "original"]


def keys_of(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def test_a_table_has_the_front_in_its_order(path: Path):
    found = looked(path)
    table = views.table_of(found)
    assert found.data is not None
    assert [row.number for row in table.rows] == [trial.number for trial in found.data.front]
    assert table.original == ("9/10", "9/10")
    assert [table.labels[row.number] for row in table.rows] == [row.label for row in table.rows]


def test_a_trial_is_shown_without_the_front_being_found_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = looked(path)
    labels = views.table_of(found).labels

    def never(_: object) -> None:
        raise AssertionError("the front takes a tenth of a second with many trials")

    monkeypatch.setattr(views, "front", never)
    number = next(iter(labels))
    view = views.trial_of(found, number, labels)
    assert view is not None
    assert view.label == labels[number]


def test_looks_are_shared(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watch, "LEAST_SECONDS", 1e6)
    found = looked(path)
    EventsFile(RunFolder(path).events_path).emit(Notice("later"))
    version = found.version
    found.look()
    assert found.version == version
    watches = watch.Watches()
    assert watches.of(path) is watches.of(path.parent / "." / path.name)
