"""The page's one worker: a real process, whoever asks for it and whenever it is stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from heretic.errors import HereticError
from heretic.events import Silent
from heretic.ui.job import Job
from heretic.ui.task import Task, saving, uploading
from heretic.worker.asked import settings_of
from heretic.worker.client import WorkerGoneError, WorkerProcess
from heretic.worker.protocol import Open, Save, State, Upload


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, tmp_path / "runs")


def within(job: Job, work: Coroutine[Any, Any, None]) -> None:
    """Run a test's work, and end the worker at once."""

    async def limited() -> None:
        try:
            await asyncio.wait_for(work, 120)
        finally:
            if job._worker is not None:
                await job._worker.terminate(patience=0, grace=5)

    asyncio.run(limited())


async def settled(job: Job) -> None:
    """Wait for the end of an opening."""
    while job.opening:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)  # what its end has set off


# --- where runs lie ------------------------------------------------------------------------


def test_a_search_is_kept_in_the_folder_of_the_page_whatever_a_file_says(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text('study_checkpoint_dir = "elsewhere"\nn_trials = 3\n')
    request = job.opening_of({"model": "org/name"})
    found = settings_of(request.settings, Silent())
    assert (found.study_checkpoint_dir, found.n_trials) == (tmp_path / "runs", 3)


def test_so_is_the_demo(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heretic.demo.job.planted_model", lambda _: tmp_path)  # no download
    request = job.opening_of({}, demo=True)
    found = settings_of(request.settings, Silent(), demo=request.demo)
    assert found.study_checkpoint_dir == tmp_path / "runs"


def test_a_run_that_exists_is_opened_with_that_folder_too(job: Job, tmp_path: Path) -> None:
    request = job.opening_of({"seed": 1}, run=tmp_path / "runs" / "a", trust_plugins=True)
    assert request == Open(
        run=str(tmp_path / "runs" / "a"),
        settings={"seed": 1, "study_checkpoint_dir": str(tmp_path / "runs")},
        trust_plugins=True,
    )


def test_another_folder_is_refused(job: Job) -> None:
    with pytest.raises(HereticError, match="heretic ui --runs"):
        job.begin({"model": "org/name", "study_checkpoint_dir": "elsewhere"})


# --- one process ---------------------------------------------------------------------------


def test_two_who_ask_at_once_get_one_worker(job: Job) -> None:
    async def work() -> None:
        first, second = await asyncio.gather(job._alive(), job._alive())
        assert first is second

    within(job, work())


def test_a_new_worker_waits_for_the_end_of_the_old_one(job: Job) -> None:
    async def work() -> None:
        old = await job._alive()
        ending = asyncio.create_task(job._end())
        await asyncio.sleep(0)
        assert job.ending
        os.kill(old.pid, signal.SIGTERM)
        new = await job._alive()
        assert not old.is_alive
        assert ending.done()
        assert new.is_alive

    within(job, work())


@pytest.mark.parametrize("control", ["pause", "resume", "stop"])
def test_a_control_starts_no_worker(job: Job, control: str) -> None:
    async def work() -> None:
        with pytest.raises(HereticError, match="No model is loaded"):
            await getattr(job, control)()
        assert job._worker is None

    within(job, work())


# --- stopping an opening -------------------------------------------------------------------


def test_a_stop_before_the_worker_is_there_ends_the_opening(job: Job) -> None:
    async def work() -> None:
        job.begin({"model": "org/name"})
        await job.stop()
        await settled(job)
        assert job._worker is None
        assert job.error == "The opening was given up."

    within(job, work())


SLOW = """
import json, sys
def say(**row): print(json.dumps(row), flush=True)
def state(name): say(type="state", state=name)
state("idle")
for line in sys.stdin:
    row = json.loads(line)
    if row["op"] == "open":
        state("loading")
        stop = json.loads(sys.stdin.readline())  # after the last step of the opening
        say(type="answer", id=stop["id"], result={})
        state("ready")
        result = {"run": "runs/a", "settings": {"system_prompt": "Be brief."}}
        say(type="answer", id=row["id"], result=result)
    else:
        state("searching")
        say(type="answer", id=row["id"], result={})
"""
"""A worker whose opening is stopped when nothing is left of it to be given up."""


async def program(text: str, folder: Path) -> WorkerProcess:
    """A process that says what a worker says."""
    import subprocess
    import sys

    errors = (folder / "errors").open("w+b")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        text,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
    )
    return WorkerProcess(process, errors)


async def with_program(job: Job, text: str) -> WorkerProcess:
    worker = await program(text, job.folder)
    worker.on_state, worker.on_event = job._changed, job._told
    job._worker = worker
    await worker.until("idle")
    return worker


def test_a_stop_at_the_end_of_an_opening_is_not_lost(job: Job) -> None:
    async def work() -> None:
        worker = await with_program(job, SLOW)
        job.begin({"model": "org/name"})
        await worker.until("loading")
        await job.stop()
        await settled(job)
        await asyncio.sleep(0.2)  # a search would begin now
        assert job.state.state == "ready"
        assert job.error == ""

    within(job, work())


# --- why a worker died ---------------------------------------------------------------------

DYING = """
import json, sys
print(json.dumps({"type": "state", "state": "idle"}), flush=True)
sys.stdin.readline()
print("out of luck", file=sys.stderr)
sys.exit(7)
"""


def test_why_a_worker_died_stays_although_its_request_fails_too(job: Job) -> None:
    async def work() -> None:
        await with_program(job, DYING)
        job.begin({"model": "org/name"})
        await settled(job)
        await asyncio.sleep(0.05)
        assert "status 7" in job.error
        assert "out of luck" in job.error

    within(job, work())


def test_without_a_reason_the_end_of_a_worker_is_told(job: Job) -> None:
    async def work() -> None:
        await with_program(job, DYING.replace("exit(7)", "exit(0)"))
        job.begin({"model": "org/name"})
        await settled(job)
        await asyncio.sleep(0.05)
        assert job.error == str(
            WorkerGoneError("The worker has ended.", remedy="Start another one.")
        )

    within(job, work())


# --- saving --------------------------------------------------------------------------------


def opened(job: Job, run: Path) -> Path:
    found = Path(os.path.realpath(run))
    job.run, job.state = found, State(state="ready")
    return found


def test_two_models_are_not_saved_to_one_folder(job: Job, tmp_path: Path) -> None:
    async def work() -> None:
        run = opened(job, tmp_path)
        place = tmp_path / "saved"
        job.tasks[run, 1] = [Task("save", "", place=place)]  # it waits
        (tmp_path / "other").symlink_to(tmp_path)
        for named in (place, tmp_path / "other" / "saved"):
            with pytest.raises(HereticError, match="already"):
                job.ask(tmp_path, 2, saving(2, named.resolve(), "merge"))
        job.tasks[run, 1][0].error = "It failed."
        job.ask(tmp_path, 2, saving(2, place, "merge"))
        assert job.tasks[run, 2][0].place == place

    within(job, work())


def test_two_models_are_not_uploaded_to_one_repository(job: Job, tmp_path: Path) -> None:
    async def work() -> None:
        run = opened(job, tmp_path)
        job.tasks[run, 1] = [Task("upload", "", place="name/edited")]  # it waits
        with pytest.raises(HereticError, match="is being uploaded to name/edited already"):
            job.ask(tmp_path, 2, uploading(2, "name/edited", "merge"))

    within(job, work())


def test_the_page_asks_for_no_export_to_be_replaced() -> None:
    assert not Save(trial=1, folder="saved").replaces


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HereticError, match="is not empty"):
        saving(1, tmp_path, "merge")


@pytest.mark.parametrize("types", [[], [""], [" , "]])
def test_gguf_files_of_no_type_are_refused_at_once(tmp_path: Path, types: list[str]) -> None:
    with pytest.raises(HereticError, match=r"No GGUF type is named\. .* such as q4_k_m"):
        saving(1, tmp_path / "new", "gguf", types)


@pytest.mark.parametrize("name", ["", "a/b/c", "-a/b", "a b", "a/b.git", "../a", "a/b--c"])
def test_what_is_no_repository_is_refused_at_once(name: str) -> None:
    with pytest.raises(HereticError, match="not a valid repository id"):
        uploading(1, name, "merge")


def test_an_upload_is_private_unless_it_is_said_otherwise() -> None:
    task, request = uploading(1, "name/edited", "merge")
    assert request == Upload(trial=1, repository="name/edited", private=True)
    assert "private" in task.title


# --- chat, and the end ---------------------------------------------------------------------

TALKING = """
import json, sys
def say(**row): print(json.dumps(row), flush=True)
say(type="state", state="idle")
for line in sys.stdin:
    row = json.loads(line)
    print(row["op"], row.get("time_limit") or "", file=sys.stderr, flush=True)
    if row.get("time_limit") == "soon":
        error = {"kind": "SettingsError", "message": "No time.", "remedy": None}
        say(type="answer", id=row["id"], error=error)
        continue
    result = {}
    if row["op"] == "open":
        say(type="state", state="ready", run="runs/a")
        limit = row["settings"].get("time_limit")
        result = {"run": "runs/a", "settings": {"system_prompt": "Be brief.", "time_limit": limit}}
    elif row["op"] == "chat":
        said = [[one["role"], one["content"]] for one in row["messages"]]
        say(type="piece", id=row["id"], text=json.dumps(said))
    elif row["op"] == "save":
        result = {name: row[name] for name in ("trial", "folder", "strategy", "gguf_types")}
    say(type="answer", id=row["id"], result=result)
    if row["op"] == "quit":
        break
"""
"""A worker that replies what it was asked."""


def test_a_chat_begins_with_the_system_prompt_of_the_run(job: Job) -> None:
    async def work() -> None:
        await with_program(job, TALKING)
        job.go_on(Path("runs/a"), search=False)
        await settled(job)
        job.say(Path("runs/a"), 1, "Hello", 1.0)
        (turn,) = job.talk(Path("runs/a"), 1).turns
        while not turn.done:
            await asyncio.sleep(0.01)
        assert json.loads(turn.original) == [["system", "Be brief."], ["user", "Hello"]]
        assert turn.edited == turn.original

    within(job, work())


def test_gguf_files_are_asked_for_by_their_types(job: Job, tmp_path: Path) -> None:
    async def work() -> None:
        await with_program(job, TALKING)
        job.go_on(Path("runs/a"), search=False)
        await settled(job)
        job.ask(Path("runs/a"), 3, saving(3, tmp_path / "new", "gguf", ["q8_0, q4_k_m"]))
        await asyncio.gather(*job._running)
        (task,) = job.tasks_of(Path("runs/a"), 3)
        assert task.result == {
            "trial": 3,
            "folder": str(tmp_path / "new"),
            "strategy": "gguf",
            "gguf_types": ["q8_0, q4_k_m"],
        }

    within(job, work())


def test_a_model_is_unloaded_and_not_while_it_is_worked_on(job: Job) -> None:
    async def work() -> None:
        worker = await with_program(job, TALKING)
        job.go_on(Path("runs/a"), search=False)
        with pytest.raises(HereticError, match="one run at a time"):
            await job.unload()
        await settled(job)
        assert job.is_open(Path("runs/a"))
        await job.unload()
        assert (worker.state.state, worker.state.status) == ("stopped", 0)
        assert not job.is_open(Path("runs/a"))
        assert not job.is_busy
        await job.unload()  # from another tab

    within(job, work())


def test_a_double_click_asks_for_one_search(job: Job) -> None:
    async def work() -> None:
        await with_program(job, TALKING)
        job.go_on(Path("runs/a"), search=False)
        await settled(job)
        job.go_on(Path("runs/a"), search=True)
        job.go_on(Path("runs/a"), search=True)
        await asyncio.gather(*job._running)
        await job.unload()
        assert (job.folder / "errors").read_text().split() == ["open", "search", "quit"]

    within(job, work())


def test_unload_does_not_undo_go_on(job: Job) -> None:
    """Two tabs: the search is asked for, and the worker has not said yet that it has begun."""

    async def work() -> None:
        await with_program(job, TALKING)
        job.go_on(Path("runs/a"), search=False)
        await settled(job)
        job.go_on(Path("runs/a"), search=True)
        with pytest.raises(HereticError, match="one run at a time"):
            await job.unload()
        await asyncio.gather(*job._running)
        assert (job.folder / "errors").read_text().split() == ["open", "search"]

    within(job, work())


def test_go_on_after_unload_opens_the_run_anew(job: Job) -> None:
    async def work() -> None:
        old = await with_program(job, TALKING)
        job.go_on(Path("runs/a"), search=False)
        await settled(job)
        async with job._turn:  # somebody else is at it
            unloading = asyncio.create_task(job.unload())
            await asyncio.sleep(0)
            assert not job.is_open(Path("runs/a"))
            job.go_on(Path("runs/a"), search=True)
            assert job.opening
        await unloading
        await job.stop()
        await settled(job)
        assert not old.is_alive
        assert "search" not in (job.folder / "errors").read_text().split()

    within(job, work())


def test_a_search_goes_on_with_the_limit_that_is_shown(job: Job) -> None:
    async def work() -> None:
        await with_program(job, TALKING)
        job.go_on(Path("runs/a"), search=False, limit="2h")
        await settled(job)
        assert job.limit == "2h"  # which the page shows
        for limit in (job.limit, ""):
            job.go_on(Path("runs/a"), search=True, limit=limit)
            await asyncio.gather(*job._running)
        told = [line.split() for line in (job.folder / "errors").read_text().splitlines()]
        assert told == [["open"], ["search", "2h"], ["search"]]

    within(job, work())


def test_a_limit_that_the_worker_refuses_is_not_proposed_again(job: Job) -> None:
    async def work() -> None:
        await with_program(job, TALKING)
        job.go_on(Path("runs/a"), search=False, limit="2h")
        await settled(job)
        job.go_on(Path("runs/a"), search=True, limit="soon")
        await asyncio.gather(*job._running, return_exceptions=True)
        await asyncio.sleep(0)
        assert job.limit == "2h"
        assert "No time." in job.error

    within(job, work())
