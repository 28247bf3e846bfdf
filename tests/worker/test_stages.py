"""What breaks off between two batches: its stage ends, and nothing that was saved is lost."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.session import session_of

from heretic import pipeline
from heretic.errors import ExportError, HereticError, RunError
from heretic.events import BROKEN_OFF, Several
from heretic.export.files import PARAMETERS, REPRODUCTION, is_ours
from heretic.runs.events import EventsFile, read_events, stage_times
from heretic.worker import answers
from heretic.worker.board import Board
from heretic.worker.inbox import CancelledError, Inbox
from heretic.worker.protocol import Cancel, Chat, Message, Sample, Save, Score
from heretic.worker.wire import Messages
from heretic.worker.work import Worker

HELLO = [Message(role="user", content="Hello")]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Session:
    found = session_of(tmp_path_factory.mktemp("session"), n_trials=1)
    with found.folder.lock():
        pipeline.search(found)
    return found


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def worker(inbox: Inbox) -> Worker:
    messages = Messages(io.BytesIO(), lost=inbox.close)
    return Worker(inbox, messages, Board(inbox, messages))


@pytest.fixture
def recorded(
    session: pipeline.Session, worker: Worker, tmp_path: Path
) -> tuple[pipeline.Session, Path]:
    """The session with the worker and a file as its reporters, in the order of an opened run."""
    path = tmp_path / "events.jsonl"
    return replace(session, reporter=Several(worker, EventsFile(path))), path


def stages(path: Path) -> list[tuple[str, bool]]:
    return [(stage.title, stage.finished) for stage in stage_times(read_events(path))]


def test_a_stage_that_is_cancelled_ends(
    recorded: tuple[pipeline.Session, Path], worker: Worker, inbox: Inbox
) -> None:
    session, path = recorded
    number = session.study.trials[0].number
    request = Sample(trials=[number], first=1)

    def cancel_at(place: int) -> Callable[[], None]:
        count = iter(range(place))

        def check() -> None:
            if next(count, None) is None:
                inbox.control(Cancel(request=1))
            Inbox.check(inbox)

        return check

    inbox.put(1, request)
    inbox.take()
    inbox.check = cancel_at(1)  # type: ignore[method-assign]  # after the stage has begun
    with pytest.raises(CancelledError):
        worker._of_session(1, request, session)
    ((title, is_finished),) = stages(path)
    assert title == "Samples of replies"
    assert is_finished


@pytest.mark.parametrize("request_", [Sample(trials=[99]), Chat(messages=HELLO, trial=99)])
def test_a_trial_is_looked_up_before_its_stage(
    recorded: tuple[pipeline.Session, Path], worker: Worker, request_: Sample | Chat
) -> None:
    session, path = recorded
    with pytest.raises(RunError, match="no trial 99"):
        worker._of_session(1, request_, session)
    assert not path.exists() or read_events(path) == []


def test_scores_that_break_off_end_their_stage(
    recorded: tuple[pipeline.Session, Path], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, path = recorded

    def fails(*_: object) -> None:
        raise HereticError("No memory is left.")

    monkeypatch.setattr(type(session.evaluator), "score_again", fails)
    with pytest.raises(HereticError, match="No memory"):
        worker._of_session(1, Score(trial=session.study.trials[0].number, first=1), session)
    ((title, is_finished),) = stages(path)
    assert title.startswith("Scoring trial")
    assert is_finished


def test_what_lies_in_a_folder_by_now_is_not_replaced(
    session: pipeline.Session, tmp_path: Path
) -> None:
    """Not even an export, which stands there since the page has looked."""
    place = tmp_path / "saved"
    place.mkdir()
    (place / PARAMETERS).write_text("{}")
    (place / REPRODUCTION).write_text(json.dumps({"files": {PARAMETERS: ""}}))
    assert is_ours(place)
    trial = session.study.trials[0].number
    with pytest.raises(ExportError, match="is not empty"):
        answers.saved(session, Save(trial=trial, folder=str(place)))


def test_a_stage_of_a_save_that_fails_ends(
    recorded: tuple[pipeline.Session, Path],
    worker: Worker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, path = recorded

    def fails(*_: object, **__: object) -> None:
        raise ExportError("The disk is full.")

    monkeypatch.setattr("heretic.export.saving.write_documents", fails)
    request = Save(trial=session.study.trials[0].number, folder=str(tmp_path / "saved"))
    with pytest.raises(ExportError, match="disk is full"):
        worker._of_session(1, request, session)
    found = stages(path)
    assert found[-1] == (f"Saving to {tmp_path / 'saved'}", True)
    assert read_events(path)[-1]["summary"] == BROKEN_OFF
