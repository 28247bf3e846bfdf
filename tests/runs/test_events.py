"""Events of a run as JSON lines: what is written, what is read back, how long stages took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support import search_case

from heretic.errors import RunError
from heretic.events import (
    EvaluationProgress,
    Notice,
    SearchFinished,
    SearchStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    TrialFinished,
)
from heretic.records import Trial
from heretic.runs.events import (
    EventsFile,
    read_events,
    recording_to,
    stage_times,
    trial_times,
    work_times,
)
from heretic.runs.folder import RunFolder

BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> datetime:
        return BEGIN + timedelta(seconds=self.seconds)


def trial(number: int = 3) -> Trial:
    [plan] = search_case.OUTSIDE[:1]
    return Trial(number, plan, search_case.measure(plan), seconds=1.5)


def test_an_event_is_a_line_that_says_when(tmp_path: Path) -> None:
    path, clock = tmp_path / "events.jsonl", Clock()
    file = EventsFile(path, clock)
    file.emit(StageStarted("Loading", total=4))
    clock.seconds = 2.5
    file.emit(StageFinished("done"))
    first, second = read_events(path)
    assert first == {
        "at": "2026-01-02T03:04:05.000+00:00",
        "event": "StageStarted",
        "title": "Loading",
        "total": 4,
    }
    assert (second["event"], second["summary"]) == ("StageFinished", "done")
    assert datetime.fromisoformat(second["at"]) == BEGIN + timedelta(seconds=2.5)


def test_a_trial_comes_with_its_scores_and_without_its_plan(tmp_path: Path) -> None:
    done = trial()
    EventsFile(tmp_path / "e").emit(TrialFinished(done, [done], 1, 5, 1.5, None))
    [row] = read_events(tmp_path / "e")
    assert row["front"] == [3]
    assert [score["name"] for score in row["trial"]["scores"]] == [s.name for s in done.scores]
    assert "plan" not in json.dumps(row)


def test_progress_is_thinned_and_its_end_is_kept(tmp_path: Path) -> None:
    clock = Clock()
    file = EventsFile(tmp_path / "e", clock)
    for done in range(1, 101):
        clock.seconds += 0.01
        file.emit(StageProgress(done, 100))
    for done in range(1, 4):
        clock.seconds += 0.6
        file.emit(EvaluationProgress("replies", done, 9))
    rows = [row["done"] for row in read_events(tmp_path / "e")]
    assert rows == [1, 51, 100, 1, 2, 3]


def test_cut_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "e"
    EventsFile(path).emit(Notice("one"))
    whole = path.read_text()
    junk = '[]\n{"at": "soon", "event": "Notice"}\n{"at": 5, "event": "x"}\n' + "[" * 9999 + "\n"
    path.write_text(junk + whole + whole[: len(whole) // 2])
    assert [row["text"] for row in read_events(path)] == ["one"]
    assert read_events(tmp_path / "nothing") == []


def test_a_secret_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    EventsFile(tmp_path / "e").emit(Notice("the token is hf_abcdefghijklmnop"))
    assert "abcdefghijklmnop" not in (tmp_path / "e").read_text()


def test_a_link_is_refused_and_what_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link"), recording_to(link):
        pass
    assert not (tmp_path / "elsewhere").exists()
    with recording_to(tmp_path / "no folder" / "e") as file:
        file.emit(Notice("unwritten"))


def test_the_last_line_says_what_ended_the_command(tmp_path: Path) -> None:
    with recording_to(tmp_path / "e"):
        pass
    with pytest.raises(KeyboardInterrupt), recording_to(tmp_path / "e"):
        raise KeyboardInterrupt
    rows = read_events(tmp_path / "e")
    assert [row["event"] for row in rows] == ["CommandStarted", "CommandEnded"] * 2
    assert [row["reason"] for row in rows[1::2]] == ["done", "KeyboardInterrupt"]


def times(path: Path) -> list[tuple[str, float, int, bool]]:
    return [
        (one.title, round(one.seconds, 3), one.command, one.finished)
        for one in stage_times(read_events(path))
    ]


def test_a_search_takes_what_no_stage_within_it_took(tmp_path: Path) -> None:
    clock = Clock()
    file = EventsFile(tmp_path / "e", clock)
    file.write("CommandStarted", {"since": 4.0})
    for seconds, event in (
        (1, StageStarted("Loading")),
        (3, StageFinished()),
        (0, SearchStarted(0, 3, ())),
        (5, StageStarted("Fit")),
        (7, StageFinished()),
        (9, SearchFinished("done", 3, 21.0)),
    ):
        clock.seconds += seconds
        file.emit(event)
    assert times(tmp_path / "e") == [
        ("Imports and prompts", 4.0, 1, True),
        ("Loading", 3.0, 1, True),
        ("Fit", 7.0, 1, True),
        ("Search", 14.0, 1, True),
    ]


def test_a_killed_command_leaves_an_unfinished_stage_and_no_pause(tmp_path: Path) -> None:
    clock = Clock()
    file = EventsFile(tmp_path / "e", clock)
    file.write("CommandStarted", {})
    file.emit(SearchStarted(0, 3, ()))
    clock.seconds = 6
    file.emit(StageProgress(1, 2))
    clock.seconds = 1000  # killed; hours later it goes on
    file.write("CommandStarted", {})
    file.emit(StageStarted("Loading"))
    clock.seconds = 1002
    file.write("CommandEnded", {"reason": "HereticError"})
    assert times(tmp_path / "e") == [
        ("Imports and prompts", 0.0, 1, True),
        ("Search", 6.0, 1, False),
        ("Imports and prompts", 0.0, 2, True),
        ("Loading", 2.0, 2, False),
    ]


def test_a_discarded_run_keeps_its_events_as_its_log(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    folder.events_path.write_text("x\n")
    folder.discard()
    assert folder.events_path.exists()


def test_times_leave_out_pauses() -> None:
    events: list[Mapping[str, Any]] = [
        {"at": "2026-01-01T00:00:00+00:00", "event": "CommandStarted", "since": 5.0},
        {"at": "2026-01-01T00:00:10+00:00", "event": "TrialFinished", "trial": {"number": 0}},
        {"at": "2026-01-01T00:00:12+00:00", "event": "CommandEnded"},
        {"at": "2026-01-02T00:00:00+00:00", "event": "CommandStarted", "since": 1.0},
        {"at": "2026-01-02T00:00:03+00:00", "event": "TrialFinished", "trial": {"number": 1}},
    ]
    assert trial_times(events) == {0: 15.0, 1: 21.0}
    assert work_times(events) == [5.0, 15.0, 17.0, 18.0, 21.0]
    assert work_times([]) == []
