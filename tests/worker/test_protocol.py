"""Lines of the worker's protocol: what is no request is an error that says why."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from heretic.worker import protocol
from heretic.worker.protocol import (
    OPERATIONS,
    Cancel,
    Chat,
    Inspect,
    Message,
    NumberedError,
    Open,
    Pause,
    Preview,
    ProtocolError,
    Sample,
    Save,
    Score,
    State,
    Upload,
    decoded,
    encoded,
    state_of,
)

FILLED = [
    Inspect(settings={"model": "org/name"}),
    Preview(settings={"good_prompts": {"split": "train[:3]"}}, first=2),
    Open(run="runs/one", trust_plugins=True),
    Open(demo=True, settings={"n_trials": 3}),
    Sample(trials=[3, 4], set="good", tokens=8, original=False),
    Chat(messages=[Message(role="user", content="Grüße\n{}")], trial=2, strength=0.5),
    Score(trial=1, prompts="held_out", first=10, tokens=64),
    Save(trial=1, folder="edited", strategy="adapter"),
    Upload(trial=1, repository="someone/name"),
    Cancel(request=4),
    Pause(),
]


@pytest.mark.parametrize("request_", FILLED, ids=lambda one: type(one).__name__)
def test_a_request_comes_back_from_its_line(request_: protocol.Request) -> None:
    line = encoded(7, request_)
    assert line.count("\n") == 1
    assert decoded(line) == (7, request_)


def test_every_request_has_an_operation() -> None:
    assert {type(one).__name__.lower() for one in FILLED} < set(OPERATIONS)
    assert {"search", "front", "resume", "stop", "quit"} < set(OPERATIONS)


def row(**changes: object) -> str:
    return json.dumps({"version": protocol.VERSION, "id": 1, "op": "pause", **changes})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "not a JSON object"),
        ("{}", "has no number"),
        (row(id=True), "has no number"),
        (row(id="1"), "has no number"),
        (row(version=2), "of version 2"),
        (row(version=None), "of version None"),
        (row(op="format"), "no request 'format'"),
        (row(op=["pause"]), "no request"),
        (row(extra=1), "Field extra of the request pause"),
        (row(op="save", trial=1), "Field folder of the request save"),
        (row(op="save", trial="1", folder="x"), "Field trial of the request save"),
        (row(op="save", trial=1, folder="x", strategy="archive"), "Field strategy"),
        (row(op="chat", messages=[{"role": "user"}]), "Field messages.0.content"),
        (row(op="chat", messages=[{"role": "tool", "content": ""}]), "Field messages.0.role"),
    ],
)
def test_what_is_no_request_is_an_error(line: str, said: str) -> None:
    with pytest.raises(ProtocolError, match=said) as caught:
        decoded(line)
    has_number = line.startswith('{"version"') and "no number" not in said
    assert isinstance(caught.value, NumberedError) == has_number


def test_an_error_does_not_repeat_what_was_sent() -> None:
    line = row(op="open", settings="hunter2-hunter2")
    with pytest.raises(ProtocolError) as caught:
        decoded(line)
    assert "hunter2" not in str(caught.value)


def test_a_state_of_a_later_release_can_be_read() -> None:
    state = State(state="searching", asked="pause", run="runs/one", waiting=2)
    assert state_of({**asdict(state), "type": "state", "mood": "good"}) == state
