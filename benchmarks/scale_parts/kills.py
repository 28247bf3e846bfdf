"""A search on real workers whose processes are killed at random, and what is left of it.

Also the program of its driver, which is killed too.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from benchmarks.scale_parts.surrogate import Surrogate, space

from heretic.cluster.crew import Batch, Job, Rivals, Score
from heretic.cluster.pool import WorkerPool
from heretic.cluster.ray_crew import RayCrew, Share
from heretic.cluster.ray_start import local_ray
from heretic.events import Silent
from heretic.records.trial import Trial, front
from heretic.runs.folder import RunFolder
from heretic.search import Study

ROOT = Path(__file__).parents[2]
WORKERS = 2
SECONDS = 0.6
"""Of each plan."""

BETWEEN = (1.0, 5.0)
"""Seconds between two kills."""


def prove() -> Mapping[str, str]:
    """Nothing has to be equal: all is on one machine."""
    return {}


def open_slow(seconds: float) -> Score:
    """Scores by the surrogate, after a while."""
    surrogate = Surrogate()

    def score(batch: Batch, rivals: Rivals) -> list[Trial]:
        time.sleep(seconds)
        return [Trial(number, plan, surrogate(plan), seconds=seconds) for number, plan in batch]

    return score


def search(folder: str, trials: str) -> None:
    """The driver: search until so many trials are complete."""
    study = Study(RunFolder(Path(folder)), space(), objectives=("minimize",) * 2, seed=0)
    with local_ray(0, 0):
        crew = RayCrew(Job(prove, {}, open_slow, SECONDS), Share(threads=1, cpus=0, gpus=0))
        try:
            study.run(WorkerPool(crew, WORKERS, Silent()), int(trials))
        finally:
            crew.close()


def kill_rows(of_workers: int, of_driver: int, trials: int, seed: int) -> list[dict[str, Any]]:
    """Kill workers and the driver at random times; what the run folder holds in the end."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        killed: Counter[str] = Counter()
        begin = time.monotonic()
        for turn in range(of_driver + 1):
            due = of_workers // (of_driver + 1) + (turn < of_workers % (of_driver + 1))
            _driven(Path(folder), trials, draw, due, killed, is_last=turn == of_driver)
        seconds = time.monotonic() - begin
        found = RunFolder(Path(folder)).read_trials()
    complete = [one for one in found if one.state == "complete"]
    surrogate = Surrogate()
    again = [Trial(one.number, one.plan, surrogate(one.plan)) for one in complete]
    return [
        {
            "workers killed": killed["worker"],
            "driver killed": killed["driver"],
            "seconds": seconds,
            "complete": len(complete),
            "different plans": len({one.plan for one in complete}),
            "in flight at a kill of the driver": sum(one.state != "complete" for one in found),
            "front is that of its plans": [(one.number, one.objectives()) for one in front(found)]
            == [(one.number, one.objectives()) for one in front(again)],
        }
    ]


def _driven(
    folder: Path, trials: int, draw: random.Random, due: int, killed: Counter[str], *, is_last: bool
) -> None:
    """One driver, which is killed after `due` kills of workers, or else ends by itself."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "benchmarks.scale_parts.kills", str(folder), str(trials)]
    known = _ended(folder)
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as driver:
        process = psutil.Process(driver.pid)
        while _ended(folder) == known:  # it starts Ray, and workers
            _check(driver)
            time.sleep(0.2)
        for _ in range(due):
            time.sleep(draw.uniform(*BETWEEN))
            while not (workers := _workers(process)):
                _check(driver)
                time.sleep(0.1)
            os.kill(draw.choice(workers).pid, signal.SIGKILL)
            killed["worker"] += 1
        if is_last:
            if driver.wait() != 0:
                raise SystemExit("The search failed.")
            return
        time.sleep(draw.uniform(*BETWEEN))
        _check(driver)
        left = process.children(recursive=True)
        driver.kill()
        killed["driver"] += 1
    _, alive = psutil.wait_procs(left, timeout=10)
    for one in alive:  # Ray's agents end after some minutes
        one.kill()


def _check(driver: subprocess.Popen[bytes]) -> None:
    if driver.poll() is not None:
        raise SystemExit("The search has ended before the kills: take more trials.")


def _workers(driver: psutil.Process) -> list[psutil.Process]:
    """The processes of a driver's workers."""
    found = []
    for one in driver.children(recursive=True):
        try:
            if "ray::Actor" in " ".join(one.cmdline()):
                found.append(one)
        except psutil.NoSuchProcess:
            continue
    return found


def _ended(folder: Path) -> int:
    """How many trials are complete, while another process writes the journal."""
    journal = folder / "trials.journal"
    return journal.read_bytes().count(b'"state":"complete"') if journal.exists() else 0


if __name__ == "__main__":
    search(*sys.argv[1:])
