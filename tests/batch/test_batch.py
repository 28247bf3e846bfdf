"""Whole batches on a tiny model: kills, failures, the table, the page, JSON."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import psutil
import pytest
from tests.support.batch_case import WITH_BROKEN, load, make_place, write
from tests.support.terminal import environment

from heretic.batch.job import ENDING, LOG, run_of
from heretic.cli.main import main
from heretic.records.trial import Trial
from heretic.runs.events import read_events
from heretic.runs.folder import RunFolder

LONG = 40
"""Trials of a job that is killed: enough to be killed before its end."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    make_place(folder)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model and prompts."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(file: Path, *options: str) -> subprocess.Popen[str]:
    """`heretic batch` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "heretic", "batch", str(file), *options],
        env=environment(COLUMNS="80"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def trials(file: Path) -> list[Trial]:
    """Those of the first job; none before it has a run."""
    path = run_of(load(file)[0])
    return [] if path is None else RunFolder(path).read_trials()


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not what():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)


def kill_all(process: subprocess.Popen[str]) -> None:
    """What a power cut does: the batch and its jobs at once."""
    jobs = psutil.Process(process.pid).children(recursive=True)
    for one in [psutil.Process(process.pid), *jobs]:
        one.kill()
    psutil.wait_procs(jobs, timeout=60)
    process.communicate()


def test_interrupted_and_killed_it_goes_on(place: Path, capsys: pytest.CaptureFixture[str]):
    file = write(place / "night.toml", f'name = "first"\nn_trials = {LONG}')

    batch = start(file)
    wait_for(lambda: len(trials(file)) > 3, batch)
    at_work = psutil.Process(batch.pid).children()
    batch.send_signal(signal.SIGINT)
    words = batch.communicate()[0]
    assert batch.returncode == 130
    assert "first unfinished" in " ".join(words.split())
    assert "The same command goes on: heretic batch" in words
    assert not any(one.is_running() for one in at_work)
    kept = trials(file)
    assert 3 < len(kept) < LONG

    batch = start(file)
    wait_for(lambda: len(trials(file)) > len(kept) + 3, batch)
    kill_all(batch)
    more = trials(file)
    assert more[: len(kept)] == kept
    assert len(more) < LONG

    status, out, err = told(capsys, str(file))
    assert status == 0, out + err
    assert trials(file)[: len(more)] == more
    assert sum(trial.state == "complete" for trial in trials(file)) == LONG
    assert "first: finished" in out
    assert max(map(len, out[out.index("\njob ") :].splitlines())) <= 80


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["batch", *words])
    out, err = capsys.readouterr()
    return status, out, err


def commands_of(file: Path, number: int) -> int:
    """How many commands have worked on a job's run."""
    path = run_of(load(file)[number])
    assert path is not None
    events = read_events(RunFolder(path).events_path)
    return sum(event["event"] == "CommandStarted" for event in events)


def test_a_failing_job_stops_no_other_and_what_has_finished_is_left_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    saving = 'model_action = "save"\ntrial_index = "knee"\nexport_strategy = "adapter"'
    file = write(Path("night.toml"), f'name = "bad"\n{WITH_BROKEN}', f'name = "saved"\n{saving}')
    status, out, err = told(capsys, str(file), "--json", "--at-once", "2")
    assert status == 1, out + err
    found = json.loads(out)
    bad, saved = found["jobs"]
    assert found["report"] == "checkpoints/night/report.html"
    assert (saved["state"], saved["completed"], saved["n_trials"]) == ("finished", 2, 2)
    assert saved["chosen"]["saved"]
    assert saved["best"]["name"] == saved["original"][0]["name"] == "refusals"
    assert (bad["state"], bad["chosen"], bad["run"]) == ("failed", None, None)
    assert "on purpose" in bad["note"]
    assert Path("checkpoints/night/saved/model/adapter_model.safetensors").is_file()
    assert "saved: started" in err
    assert "--- " in Path("checkpoints/night/bad", LOG).read_text(encoding="utf-8")

    # Again: nothing is started.
    status, out, err = told(capsys, str(file))
    assert status == 1
    assert "started" not in out + err
    assert "on purpose" in out
    assert "Failed jobs are run again with --retry." in out
    assert "The page is checkpoints/night/report.html." in out
    assert commands_of(file, 1) == 1

    # Prompts of the same name that are others.
    before = Path("bad.txt").read_text(encoding="utf-8")
    Path("bad.txt").write_text(before.replace("moon", "roof"), encoding="utf-8")
    status, out, err = told(capsys, str(file), "--check")
    assert status == 2
    assert "saved: Its model, its prompts or its scorers are not those" in err
    status, out, err = told(capsys, str(file), "--job", "saved")
    assert status == 2
    assert "finished." not in out
    assert "Its model, its prompts or its scorers are not those" in err
    Path("bad.txt").write_text(before, encoding="utf-8")

    # Settings that have changed: an error, or done again.
    file = write(file, 'name = "bad"', f'name = "saved"\n{saving}\nn_trials = 3')
    status, out, err = told(capsys, str(file))
    assert status == 2
    assert "saved: It has finished with other settings (n_trials)." in err
    assert "1 job of night.toml cannot be run; none was started." in err
    status, out, err = told(capsys, str(file), "--retry")
    assert status == 0, out + err
    assert commands_of(file, 1) == 2
    assert "saved" in out
    assert "3/3" in out


def test_what_a_job_has_found_with_other_prompts_is_not_shown_for_those_of_now(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    """Also if a run with these prompts was there before."""
    file = write(Path("night.toml"), 'name = "a"')
    before = Path("bad.txt").read_text(encoding="utf-8")
    assert told(capsys, str(file), "--job", "a")[0] == 0
    for number, words in enumerate((before.replace("moon", "roof"), before)):
        ending = load(file)[0].folder / ENDING
        Path("bad.txt").write_text(words, encoding="utf-8")
        status, out, err = told(capsys, str(file), "--check")
        assert (status, out) == (2, ""), number
        assert "Its model, its prompts or its scorers are not those" in err
        if number == 0:
            ending.unlink()
            assert told(capsys, str(file), "--job", "a")[0] == 0


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
def test_nobody_is_asked_about_a_job_on_a_terminal(place: Path, capsys: pytest.CaptureFixture[str]):
    """Whoever quits there would have finished the job without its trials."""
    file = write(Path("night.toml"), 'name = "a"')
    assert told(capsys, str(file), "--job", "a")[0] == 0
    (load(file)[0].folder / ENDING).unlink()
    words = ["-m", "heretic", "batch", str(file), "--job", "a"]
    child = pexpect.spawn(sys.executable, words, env=environment(), timeout=120)
    assert child.expect(["already exists", pexpect.EOF]) == 1
    child.close()
    assert child.exitstatus == 0
