"""Runs the jobs of a batch, each in a process of its own, one after another or several at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from heretic.batch.job import LOG, Job, condition
from heretic.errors import RunError, SettingsError
from heretic.runs.lock import is_locked
from heretic.system.display import bytes_text
from heretic.system.files import cannot_write, free_bytes, open_own
from heretic.system.machine import CORES_VARIABLE, usable_cores

_PAUSE = 0.25
"""Seconds between two looks at the processes."""

LEAST_FREE = 10_000_000
"""Bytes on the disk without which no job is started: it would load its model, and then fail."""

_REMEDY = "Free some space, then start the same command again: it goes on."
_DEVICES = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")

HERETIC = (sys.executable, "-P", "-m", "heretic")
"""Starts this program; modules in the working folder are not ours."""

Place = Mapping[str, str]
"""Variables that give a job its share of the machine."""


class Watcher(Protocol):
    """Is told what happens to the jobs. Its methods must be quick."""

    def started(self, job: Job) -> None:
        """A process was started for the job."""

    def found_running(self, job: Job) -> None:
        """A process that this batch has not started works on the job; it is waited for."""

    def ended(self, job: Job, status: int) -> None:
        """The job's process has ended: its exit status, negative if a signal ended it."""

    def at_work(self, jobs: Sequence[Job]) -> None:
        """These jobs are at work; said several times a second."""

    def stopping(self, jobs: Sequence[Job]) -> None:
        """The batch was interrupted, and so are these jobs."""


@dataclass(frozen=True, slots=True)
class _Running:
    """A job at work; `process` is None where another batch, now gone, has started it."""

    job: Job
    place: Place
    process: subprocess.Popen[bytes] | None

    def status(self) -> int | None:
        """The exit status, 0 for a process that is not ours; None while it works."""
        if self.process is not None:
            return self.process.poll()
        return None if is_locked(self.job.folder) else 0


def places(count: int) -> list[Place]:
    """Shares of this machine for so many jobs at once: GPUs, or else cores.

    GPUs are those that CUDA or ROCm shows, in equal numbers up to one. Where there is none, each
    job computes with its share of the cores, or with as many threads as OMP_NUM_THREADS says; the
    workers of a job share its share.

    Raises:
        SettingsError: There are fewer GPUs than jobs.
    """
    if count == 1:
        return [{}]
    variable = next((name for name in _DEVICES if name in os.environ), _DEVICES[-1])
    devices = _visible(variable)
    if not devices:
        share = str(max(1, usable_cores() // count))
        threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": share}
        return [{CORES_VARIABLE: share, **threads}] * count
    if len(devices) < count:
        raise SettingsError(
            f"--at-once is {count}, and there are {len(devices)} GPUs: two models on one GPU would "
            "take memory from each other.",
            remedy=f"Give at most --at-once {len(devices)}, or leave it out.",
        )
    ends = [len(devices) * number // count for number in range(count + 1)]
    return [{variable: ",".join(devices[ends[n] : ends[n + 1]])} for n in range(count)]


def _visible(variable: str) -> list[str]:
    """Names of the GPUs that processes see, in their order."""
    named = os.environ.get(variable)
    if named is None:
        import torch

        return [str(number) for number in range(torch.cuda.device_count())]
    found: list[str] = []
    for name in named.split(","):
        if not name.strip() or name.strip().startswith("-"):  # the driver stops reading there, too
            break
        found.append(name.strip())
    return found


def run_jobs(
    file: Path, jobs: Sequence[Job], shares: Sequence[Place], watcher: Watcher
) -> dict[str, int]:
    """Run jobs, as many at once as there are shares.

    A job that another process works on is waited for, and then started if it has not ended well.

    Returns:
        The exit status of each job's process, by the job's name; negative if a signal ended it.

    Raises:
        KeyboardInterrupt: The batch was interrupted; no process that it started is left.
        RunError: A job could not be started, such as on a full disk. Those that were at work then
            have come to their own ends.
    """
    waiting, free = deque(jobs), deque(shares)
    running: list[_Running] = []
    statuses: dict[str, int] = {}
    refused: RunError | None = None
    try:
        while running or (waiting and refused is None):
            while waiting and free and refused is None:
                try:
                    begun = _begin(file, waiting[0], free[0])
                except RunError as error:
                    refused = error
                    break
                running.append(begun)  # first of all, so that it is ended with the batch
                waiting.popleft()
                free.popleft()
                tell = watcher.found_running if begun.process is None else watcher.started
                tell(begun.job)
            for one in list(running):
                status = one.status()
                if status is None:
                    continue
                running.remove(one)
                free.append(one.place)
                if _is_to_be_looked_at_again(one, status):
                    waiting.appendleft(one.job)
                    continue
                statuses[one.job.name] = status
                watcher.ended(one.job, status)
            watcher.at_work([one.job for one in running])
            time.sleep(_PAUSE)
    except BaseException:
        _stop(running, watcher)
        raise
    if refused is not None:
        raise refused
    return statuses


def check_space(folder: Path) -> None:
    """Say that a disk is too full for a job to begin there.

    Raises:
        RunError: It is.
    """
    free = free_bytes(folder)
    if free < LEAST_FREE:
        raise RunError(
            f"The disk of {folder} has {bytes_text(free)} left: no job can be started there.",
            remedy=_REMEDY,
        )


def _is_to_be_looked_at_again(one: _Running, status: int) -> bool:
    """Whether another process did the job, or does it now since it was quicker than ours."""
    if one.process is None:
        return condition(one.job).state not in ("finished", "failed")
    return status != 0 and is_locked(one.job.folder)


def _begin(file: Path, job: Job, place: Place) -> _Running:
    """Start the process of a job.

    Raises:
        RunError: Its folder cannot be written.
    """
    log = job.folder / LOG
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        if is_locked(job.folder):
            return _Running(job, place, None)
        check_space(job.folder)
        descriptor = open_own(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    except OSError as error:
        raise cannot_write(log, error, _REMEDY) from error
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError):  # what the job prints may be lost, and the job is not
            os.write(descriptor, f"--- {now} job {job.name}\n".encode())
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
            [*HERETIC, "batch", f"--job={job.name}", "--retry", "--", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            env={**os.environ, **place},
            # Ctrl+C reaches the batch alone, which tells the jobs once.
            start_new_session=os.name != "nt",
        )
    finally:
        os.close(descriptor)
    return _Running(job, place, process)


def _stop(running: Sequence[_Running], watcher: Watcher) -> None:
    """End the processes that were started here, and wait: each keeps what it has found so far.

    Whoever interrupts once more insists: a process that was told twice ends at once.
    """
    ours = [one for one in running if one.process is not None]
    untold = True
    while alive := [one.process for one in ours if one.process and one.process.poll() is None]:
        with suppress(KeyboardInterrupt):
            for process in alive:
                process.terminate()
            if untold:
                untold = False
                with suppress(OSError):  # a screen that is gone keeps no process alive
                    watcher.stopping([one.job for one in ours])
            for process in alive:
                process.wait()
