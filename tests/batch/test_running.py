"""Shares of the machine, and jobs whose process another batch has started."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.batch_case import load, write

from heretic.batch import running
from heretic.batch.job import Job, condition, do
from heretic.batch.running import places, run_jobs
from heretic.cluster import ray_start
from heretic.config.settings import Settings
from heretic.errors import HereticError, RunError, SettingsError
from heretic.system.machine import CORES_VARIABLE, usable_cores


class TestShares:
    def test_one_job_has_the_whole_machine(self):
        assert places(1) == [{}]

    @pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
    def test_gpus_are_shared_out(self, variable: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv(variable, "3,GPU-5f, 7,0,1")
        assert places(2) == [{variable: "3,GPU-5f"}, {variable: "7,0,1"}]
        assert [place[variable] for place in places(5)] == ["3", "GPU-5f", "7", "0", "1"]

    def test_no_gpu_is_given_to_two_jobs(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        with pytest.raises(SettingsError, match="there are 2 GPUs") as caught:
            places(3)
        assert "--at-once 2" in str(caught.value)

    @pytest.mark.parametrize("hidden", ["", "-1", "-1,0,1"])
    def test_without_gpus_cores_are_shared_out(self, hidden: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(running, "usable_cores", lambda: 9)
        assert places(2) == [{"OMP_NUM_THREADS": "4", CORES_VARIABLE: "4"}] * 2
        assert places(20)[0] == {"OMP_NUM_THREADS": "1", CORES_VARIABLE: "1"}
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert places(2) == [{CORES_VARIABLE: "4"}] * 2

    def test_a_jobs_own_ray_has_no_more_cores_than_its_share(self, monkeypatch: pytest.MonkeyPatch):
        """Else the workers of all jobs would compute with as many threads as there are cores."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        cores = usable_cores()
        begun: list[int] = []

        def init(*, num_cpus: int, **_: Any) -> None:
            begun.append(num_cpus)
            raise RuntimeError("enough")

        fake = SimpleNamespace(
            init=init,
            shutdown=lambda: None,
            is_initialized=lambda: False,
            job_config=SimpleNamespace(JobConfig=lambda **_: None),
        )
        monkeypatch.setattr(ray_start, "ray_package", lambda: fake)
        monkeypatch.setattr(ray_start, "_imported_closed", lambda: True)
        for variable, value in places(2)[0].items():
            monkeypatch.setenv(variable, value)
        with pytest.raises(HereticError, match="enough"), ray_start.local_ray(0, 0):
            pass
        assert begun == [max(1, cores // 2)]


class Watching:
    """Keeps what it is told."""

    def __init__(self, release: threading.Event) -> None:
        self.told: list[tuple[str, str]] = []
        self._release = release

    def started(self, job: Job) -> None:
        self.told.append(("started", job.name))

    def found_running(self, job: Job) -> None:
        self.told.append(("found", job.name))

    def ended(self, job: Job, status: int) -> None:
        self.told.append(("ended", job.name))

    def at_work(self, jobs: Sequence[Job]) -> None:
        self._release.set()

    def stopping(self, jobs: Sequence[Job]) -> None:
        self.told.append(("stopping", ""))


def test_a_job_that_a_killed_batch_left_at_work_is_awaited_and_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    file = write(Path("night.toml"), 'name = "a"', defaults="[defaults]\nmodel = 'org/m'\n")
    (job,) = load(file)
    job.folder.mkdir(parents=True)
    begun, release = threading.Event(), threading.Event()

    def search(_: Settings) -> int:
        begun.set()
        assert release.wait(60)
        return 0

    thread = threading.Thread(target=do, args=(job, search))
    thread.start()
    assert begun.wait(60)
    watching = Watching(release)
    assert run_jobs(file, [job], [{}], watching) == {"a": 0}
    thread.join()
    assert watching.told == [("found", "a"), ("ended", "a")]
    assert condition(job).state == "finished"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BrokenPipeError(32, "Broken pipe")])
def test_no_process_is_left_where_nobody_can_be_told_or_somebody_insists(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As with `heretic batch FILE | tee log`, where Ctrl+C ends `tee` first."""
    monkeypatch.chdir(tmp_path)
    file = write(Path("night.toml"), 'name = "a"', defaults="[defaults]\nmodel = 'org/m'\n")
    waits = (sys.executable, "-c", "import time; time.sleep(600)")
    monkeypatch.setattr(running, "HERETIC", waits)
    begun: list[subprocess.Popen[bytes]] = []
    begin = subprocess.Popen

    def keeping(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        begun.append(begin(*words, **options))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", keeping)

    class Gone(Watching):
        def at_work(self, jobs: Sequence[Job]) -> None:
            raise KeyboardInterrupt

        def stopping(self, jobs: Sequence[Job]) -> None:
            raise error

    with pytest.raises(KeyboardInterrupt):
        run_jobs(file, load(file), [{}], Gone(threading.Event()))
    assert [process.poll() is None for process in begun] == [False]


class TestFullDisk:
    """What was computed is kept, and it is said what to do."""

    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        ends = (sys.executable, "-c", "import time; time.sleep(0.5)")
        monkeypatch.setattr(running, "HERETIC", ends)
        defaults = "[defaults]\nmodel = 'org/m'\n"
        return write(Path("night.toml"), *(f'name = "{name}"' for name in "abc"), defaults=defaults)

    def test_no_more_jobs_start_and_those_at_work_end(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ):
        left = iter([10**9, 12_000])
        usage = shutil.disk_usage(".")
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _: type(usage)(usage.total, usage.used, next(left))
        )
        watching = Watching(threading.Event())
        with pytest.raises(RunError, match="b has 12 kB left: no job can be started") as caught:
            run_jobs(file, load(file), [{}, {}], watching)
        assert "Free some space, then start the same command again" in str(caught.value)
        assert watching.told == [("started", "a"), ("ended", "a")]

    def test_a_line_in_the_log_that_is_not_taken_stops_no_job(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        assert run_jobs(file, load(file), [{}], Watching(threading.Event())) == dict.fromkeys(
            "abc", 0
        )

    def test_a_job_says_why_it_failed_and_goes_on_later(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def full(*_: object) -> None:
            raise RunError("Cannot write job.json: No space left on device.")

        def search(_: Settings) -> int:
            raise RunError("Cannot write trials.journal: No space left on device.")

        job = load(file)[0]
        job.folder.mkdir(parents=True)
        monkeypatch.setattr("heretic.batch.job._write", full)
        with pytest.raises(RunError, match=r"trials\.journal"):
            do(job, search)
        assert condition(job).state == "waiting"
