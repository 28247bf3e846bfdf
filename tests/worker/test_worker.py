"""Workers as processes of their own: what they do is what the command does, whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from tests.support import worker_case
from tests.support.worker_case import HELLO, comparable, only_run, settings_in

from heretic.main import main
from heretic.runs.events import read_events, stage_times
from heretic.worker.client import RequestError, WorkerGoneError, WorkerProcess
from heretic.worker.protocol import (
    Cancel,
    Chat,
    Front,
    Inspect,
    Open,
    Pause,
    Preview,
    Resume,
    Sample,
    Save,
    Score,
    Search,
    State,
    Stop,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENDLESS = 100_000
"""Trials of a search that does not end by itself."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worker_case.make_place(tmp_path_factory.mktemp("model")) / "Tiny-Base"


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Path:
    """A folder with model and prompts."""
    (tmp_path / "Tiny-Base").symlink_to(model)
    return tmp_path


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place in which the command has searched, without a pause."""
    place = tmp_path_factory.mktemp("reference")
    (place / "Tiny-Base").symlink_to(model)
    assert worker_case.searched_by_command(place) == 0
    return place


@asynccontextmanager
async def worker_in(place: Path) -> AsyncIterator[WorkerProcess]:
    """A worker whose working folder is `place`, with all states that it has told in `states`."""
    worker = await WorkerProcess.start(folder=place)
    try:
        yield worker
    finally:
        await worker.terminate(patience=0, grace=5)


def within(work: Coroutine[Any, Any, None]) -> None:
    """Run a test's work; what hangs fails."""

    async def limited() -> None:
        await asyncio.wait_for(work, 600)

    asyncio.run(limited())


async def refused(worker: WorkerProcess, request: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await worker.request(request)
    return caught.value


async def completes(place: Path, count: int) -> None:
    """Wait until the run of a place has so many trials, as its folder says."""
    while len(only_run(place).read_trials()) < count:
        await asyncio.sleep(0.1)


def plain_trials(place: Path) -> list[tuple[Any, ...]]:
    return comparable(only_run(place).read_trials())


def test_what_is_asked_between_batches_leaves_the_search_as_it_was(
    place: Path, reference: Path
) -> None:
    states: list[State] = []
    wanted = plain_trials(reference)

    async def work() -> None:
        async with worker_in(place) as worker:
            worker.on_state = states.append
            opened = await worker.request(Open(settings=settings_in(place)))
            assert (opened["trials"], opened["n_trials"], opened["front"]) == (0, 6, [])
            # The pause is in the worker's hands before the first batch.
            await asyncio.gather(worker.request(Search()), worker.request(Pause()))
            assert "one at a time" in str(await refused(worker, Search()))
            await worker.until("paused")
            assert len(wanted) > len(only_run(place).read_trials())
            said = [piece async for piece in worker.stream(Chat(messages=HELLO, tokens=5))]
            await worker.request(Stop())
            await worker.until("ready")
            await worker.request(Search(n_trials=2))
            await worker.until("ready")
            await asyncio.gather(worker.request(Search()), worker.request(Pause()))
            await worker.until("paused")
            front = (await worker.request(Front()))["front"]
            trial = front[0]["trial"]
            await worker.request(Chat(messages=HELLO, trial=trial, strength=0.5, tokens=5))
            sampled = await worker.request(Sample(trials=[trial], first=2))
            await worker.request(Score(trial=trial, first=3, tokens=6))
            await worker.request(Resume())
            state = await worker.until("ready")
            assert (state.state, state.reason, state.problem) == ("ready", "done", None)
            assert "".join(said)
            assert {name: len(rows) for name, rows in sampled["replies"].items()} == {
                "original": 2,
                str(trial): 2,
            }

    within(work())
    assert plain_trials(place) == wanted
    names = [state.state for state in states]
    assert names.index("loading") < names.index("searching") < names.index("paused")
    assert {"chat", "sample", "score"} < {state.doing for state in states}
    titles = [stage.title for stage in stage_times(read_events(only_run(place).events_path))]
    assert {"Paused", "Chat", "Samples of replies"} < set(titles)


def test_a_stopped_search_keeps_its_model_and_the_command_goes_on(
    place: Path, reference: Path
) -> None:
    saved = place / "saved"

    async def work() -> None:
        async with worker_in(place) as worker:
            opened = await worker.request(Open(settings=settings_in(place)))
            assert Path(opened["run"]) == only_run(place).path
            await worker.request(Search(n_trials=2))
            await worker.until("ready")
            await asyncio.gather(worker.request(Search()), worker.request(Stop()))
            state = await worker.until("ready")
            assert state.reason == "interrupted"
            assert len(only_run(place).read_trials()) < 6
            front = (await worker.request(Front()))["front"]
            trial = front[0]["trial"]
            result = await worker.request(Save(trial=trial, folder=str(saved)))
            assert {"original", "in the search", "from disk"} <= set(result["rows"])
            taken = await refused(worker, Save(trial=trial, folder=str(place)))
            assert taken.kind == "ExportError"
            assert str(place) in str(taken)
            assert "no trial 99" in str(await refused(worker, Score(trial=99)))
            state = await worker.terminate(patience=120)
            assert (state.state, state.status) == ("stopped", 0)
            with pytest.raises(WorkerGoneError, match="has ended"):
                await worker.request(Front())

    within(work())
    assert load_file(saved / "model.safetensors").keys()
    assert main(["audit", str(saved)]) == 0
    assert worker_case.searched_by_command(place) == 0
    assert plain_trials(place) == plain_trials(reference)


def test_a_worker_goes_on_with_a_run_of_the_command(
    reference: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also: what is refused before, with what remedy, by a worker that then still works."""
    assert worker_case.searched_by_command(place, n_trials=2) == 0
    run = only_run(place)

    async def work() -> None:
        async with worker_in(place) as worker:
            wrong = await refused(worker, Open(settings=settings_in(place, n_trials="many")))
            assert wrong.kind == "SettingsError"
            assert "n_trials" in str(wrong)
            missing = settings_in(place, model=str(place / "nowhere"))
            assert "nowhere" in str(await refused(worker, Open(settings=missing)))
            assert "No run is open" in str(await refused(worker, Chat(messages=HELLO)))
            assert "No run is open" in str(await refused(worker, Search()))
            assert (await refused(worker, Stop())).kind == "RunError"
            left = settings_in(place, checkpoint_action="quit")
            assert "left as it is" in str(await refused(worker, Open(settings=left)))

            held = [sys.executable, "-m", "tests.support.search_case", "hold", str(run.path)]
            with subprocess.Popen(
                held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as holder:
                assert holder.stdout is not None
                assert holder.stdin is not None
                await asyncio.to_thread(holder.stdout.readline)
                busy = await refused(worker, Open(run=str(run.path)))
                assert "Another process is working" in str(busy)
                holder.stdin.close()

            model = {"model": str(place / "Tiny-Base")}
            found = await worker.request(Inspect(settings=model))
            assert found["n_layers"] == 3
            assert found["fits"]
            sets = (await worker.request(Preview(settings=settings_in(place), first=2)))["sets"]
            assert sets["bad"]["count"] == 8
            assert len(sets["bad"]["first"]) == 2

            opened = await worker.request(Open(run=str(run.path)))
            assert opened["trials"] == 2
            assert "works on the run" in str(await refused(worker, Open(run=str(run.path))))
            await worker.request(Search(n_trials=6))
            await worker.until("ready")
            stream = worker.stream(Chat(messages=HELLO, tokens=400))
            async with aclosing(stream) as pieces:
                async for _ in pieces:
                    break
            front = await worker.request(Front())  # the reply is given up, and the worker is not
            assert front["front"]

    within(work())
    assert plain_trials(place) == plain_trials(reference)
    capsys.readouterr()
    assert main(["runs", "--study-checkpoint-dir", str(place / worker_case.RUNS), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["completed"]) == (
        "unfinished" if row["n_trials"] > 6 else "finished",
        6,
    )
    page = place / "report.html"
    assert main(["report", str(run.path), "--output", str(page)]) == 0
    assert page.is_file()


def test_a_killed_worker_is_told_and_another_goes_on(place: Path, reference: Path) -> None:
    async def work() -> None:
        async with worker_in(place) as worker:
            await worker.request(Open(settings=settings_in(place)))
            await worker.request(Search(n_trials=ENDLESS))
            await completes(place, 2)
            os.kill(worker.pid, signal.SIGSTOP)  # so that it does not answer before it dies
            waiting = asyncio.create_task(worker.request(Front()))
            await asyncio.sleep(0)
            os.kill(worker.pid, signal.SIGKILL)
            state = await worker.until("dead")
            assert (state.state, state.status) == ("dead", -signal.SIGKILL)
            with pytest.raises(WorkerGoneError, match="by signal 9"):
                await waiting
            with pytest.raises(WorkerGoneError, match="open the run again"):
                await worker.request(Front())
        async with worker_in(place) as worker:
            opened = await worker.request(Open(run=str(only_run(place).path)))
            assert opened["trials"] >= 2
            await worker.request(Search())
            state = await worker.until("ready")
            assert state.reason == "done"
            # Ctrl+C in the server's terminal is none of the worker's business.
            os.kill(worker.pid, signal.SIGINT)
            await worker.request(Search(n_trials=ENDLESS))
            await completes(place, 8)
            await worker.request(Chat(messages=HELLO, tokens=3))
            # SIGTERM ends a search at once; what is complete is kept.
            state = await worker.terminate(patience=0, grace=60)
            assert (state.state, state.status) == ("stopped", 128 + signal.SIGTERM)

    within(work())
    complete = [one for one in only_run(place).read_trials() if one.state == "complete"]
    assert len(complete) >= 8
    wanted = only_run(reference).read_trials()
    assert [one.plan for one in complete[:6]] == [one.plan for one in wanted]
    assert [one.scores for one in complete[:6]] == [one.scores for one in wanted]
    assert not only_run(place).is_locked


def test_lines_that_are_no_requests_are_answered_and_the_end_of_input_stops_the_search(
    place: Path,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "heretic.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=place,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    settings = json.dumps(settings_in(place, n_trials=ENDLESS, patience=0))
    lines = [
        b"\xff\xfe{",
        b"",
        b'{"id": 1}',
        b'{"version": 1, "id": 2, "op": "fly"}',
        f'{{"version": 1, "id": 3, "op": "open", "settings": {settings}}}'.encode(),
        b'{"version": 1, "id": 4, "op": "search"}',
    ]
    with process:
        process.stdin.write(b"\n".join(lines) + b"\n")
        process.stdin.flush()
        seen: list[dict[str, Any]] = []
        while not any(row.get("id") == 4 for row in seen):
            seen.append(json.loads(process.stdout.readline()))  # nothing else is there
        while not only_run(place).read_trials():
            time.sleep(0.1)  # the worker may need the core
        process.stdin.close()
        rest = [json.loads(line) for line in process.stdout]
        assert process.wait() == 0
    answers = {row["id"]: row for row in [*seen, *rest] if row["type"] == "answer"}
    assert "not JSON" in answers[None]["error"]["message"]
    assert "version None" in answers[1]["error"]["message"]
    assert "no request 'fly'" in answers[2]["error"]["message"]
    assert answers[3]["result"]["run"] == str(only_run(place).path)
    ends = [row for row in rest if row["type"] == "state"]
    assert ends[-1]["reason"] == "interrupted"
    states = {trial.state for trial in only_run(place).read_trials()}
    assert states == {"complete"}  # the batch was waited for
    events = read_events(only_run(place).events_path)
    assert events[-1]["event"] == "CommandEnded"
    assert events[-1]["reason"] == "done"
    assert not only_run(place).is_locked


def test_an_opening_is_given_up_at_its_next_step(place: Path) -> None:
    async def work() -> None:
        async with worker_in(place) as worker:
            opening = asyncio.create_task(worker.request(Open(settings=settings_in(place))))
            await worker.until("loading")
            await worker.request(Stop())
            with pytest.raises(RequestError) as caught:
                await opening
            assert caught.value.kind == "Cancelled"
            assert worker.state.state == "idle"
            await worker.request(Cancel(request=12345))
            opened = await worker.request(Open(settings=settings_in(place)))
            assert opened["trials"] == 0

    within(work())


GARBAGE = """
import json, sys
print("Loading checkpoint shards: 100%")
print(json.dumps([1, 2]))
print(json.dumps({"type": "state", "state": "idle", "later": 1}))
print(json.dumps({"type": "answer", "id": 99, "result": {}}))
print(json.dumps({"type": "weather"}))
print(json.dumps({"type": "answer", "id": None, "error": {}}), flush=True)
number = json.loads(sys.stdin.readline())["id"]
print(json.dumps({"type": "answer", "id": number, "result": {"well": True}}), flush=True)
sys.stdin.readline()
print("out of luck", file=sys.stderr)
sys.exit(7)
"""


def test_a_client_survives_what_is_no_message(tmp_path: Path) -> None:
    async def work() -> None:
        errors = (tmp_path / "errors").open("w+b")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            GARBAGE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        worker = WorkerProcess(process, errors)
        assert (await worker.until("idle")).state == "idle"
        assert await worker.request(Front()) == {"well": True}
        with pytest.raises(WorkerGoneError, match="with 7"):
            await worker.request(Front())
        assert (worker.state.state, worker.state.status) == ("dead", 7)
        assert worker.last_lines() == ["out of luck"]

    within(work())
