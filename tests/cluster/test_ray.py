"""Workers on a real Ray of this machine: who reaches it, and what kills do to a search."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support import worker_case
from tests.support.process_words import words_of
from tests.support.ray_case import job, kill_workers, origin, trials_in
from tests.support.search_case import Recorder, evaluate, make_study
from tests.support.session import session_of

from heretic import pipeline
from heretic.cluster.crew import Batch, Rivals
from heretic.cluster.pool import WorkerPool
from heretic.cluster.ray_crew import RayCrew, Share
from heretic.cluster.ray_start import answer_to_stranger, local_ray
from heretic.errors import StudyError
from heretic.records import Trial, front

if find_spec("ray") is None:  # imported in the tests: Ray reads variables then
    pytest.skip("the extra `ray` is not installed", allow_module_level=True)

SHARE = Share(threads=1, cpus=0, gpus=0)
PROGRAM = """
import sys
from pathlib import Path
from tests.support.worker_case import searched_by_command
searched_by_command(Path(sys.argv[1]), n_trials=400, workers=1)
"""


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all tests here: it takes seconds to start.

    It starts in a folder in which modules lie, and workers find the tests by their path.
    """
    folder = tmp_path_factory.mktemp("lies")
    (folder / "tabnanny.py").write_text("")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.chdir(folder)
        with local_ray(0, 0):
            yield


@pytest.fixture
def crew(request: pytest.FixtureRequest) -> Iterator[RayCrew]:
    found = RayCrew(job(**getattr(request, "param", {})), SHARE)
    yield found
    found.close()


def test_only_this_machine_reaches_it(crew: RayCrew, tmp_path: Path):
    make_study(tmp_path).run(WorkerPool(crew, 1, Recorder()), 1)
    me = psutil.Process()
    addresses = {
        connection.laddr.ip
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses
    for address in addresses:
        assert ip_address(address.removeprefix("::ffff:")).is_loopback


def test_a_process_without_its_token_is_refused(tmp_path: Path, monkeypatch):
    import ray

    address = ray.get_runtime_context().gcs_address
    (tmp_path / "ray.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert answer_to_stranger(address) == "refused"


def test_a_module_in_the_working_directory_does_not_run_in_workers(monkeypatch):
    import ray

    found = ray.get(ray.remote(num_cpus=0)(origin).remote("tabnanny"))
    assert Path(found).parent == Path(os.__file__).parent


def test_what_ray_tells_of_losses_is_logged_and_not_printed(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    """Where a worker is killed, Ray's paragraphs would stand in the progress, or in JSON."""
    from ray._private.utils import publish_error_to_driver
    from ray._private.worker import global_worker

    worker: Any = global_worker  # its type does not know the client
    caplog.set_level(logging.INFO, "heretic")
    deadline = time.monotonic() + 60
    while "A worker died" not in caplog.text and not capfd.readouterr().out:
        assert time.monotonic() < deadline
        publish_error_to_driver("worker_died", "A worker died.", worker.gcs_client)
        time.sleep(0.2)
    assert "Ray's raylet: A worker died." in caplog.text
    assert capfd.readouterr().out == ""


class Deadly(RayCrew):
    """A crew that kills all workers while the last that was sent a plan works on it."""

    def __init__(self, at: int) -> None:
        super().__init__(job(0.5), SHARE)
        self.at = at
        self.sent: list[int] = []

    def send(self, worker: int, task: int, batch: Batch, rivals: Rivals) -> None:
        super().send(worker, task, batch, rivals)
        self.sent.append(task)
        if len(self.sent) == self.at:
            kill_workers()


def test_killed_workers_lose_no_plan(tmp_path: Path):
    random = {"n_startup_trials": 1000}
    alone = make_study(tmp_path / "alone", **random).run(evaluate, 6)
    crew, recorder = Deadly(at=4), Recorder()
    found = make_study(tmp_path / "pool", **random).run(WorkerPool(crew, 2, recorder), 6)
    crew.close()
    assert len(crew.sent) > len(set(crew.sent)) == 6
    assert [(one.number, one.plan, one.scores) for one in found] == [
        (one.number, one.plan, one.scores) for one in alone
    ]
    assert any("started again" in text for text in recorder.notices("warning"))


@pytest.mark.parametrize("crew", [{"proof": {"model": "another"}}], indirect=True)
def test_a_node_with_another_model_is_named(crew: RayCrew, tmp_path: Path):
    told = f"{os.uname().nodename} has model the same and not another"
    with pytest.raises(StudyError, match=told):
        make_study(tmp_path).run(WorkerPool(crew, 1, Recorder()), 1)


@pytest.mark.slow
class TestModel:
    """Replicas of a tiny model."""

    def test_scores_are_those_of_one_process(self, tmp_path: Path):
        session = session_of(tmp_path, workers=2, racing=False, n_trials=4, plans_at_once=1)
        with session.folder.lock():
            pipeline.search(session)
        trials = session.study.trials
        assert [one.state for one in trials] == ["complete"] * 4
        assert [one.scores for one in trials] == [
            session.evaluator.evaluate([one.plan])[0] for one in trials
        ]

    def test_a_killed_driver_goes_on(self, tmp_path: Path):
        place = worker_case.make_place(tmp_path)
        command = [sys.executable, "-c", PROGRAM, str(place)]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as program:
            deadline = time.monotonic() + 300
            journals = lambda: [*place.glob("runs/*/trials.journal")]  # noqa: E731
            while not journals() or trials_in(journals()[0]) < 3:
                assert program.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            # Ray's agents notice within some minutes only; they hold no model.
            below = psutil.Process(program.pid).children(recursive=True)
            left = [process for process in below if "Agent" not in words_of(process)]
            os.kill(program.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(left, timeout=60)
        for process in alive:  # end what a failing test would leave
            process.kill()
        assert not alive
        kept = [one for one in worker_case.only_run(place).read_trials() if one.scores]
        wanted = len(kept) + 3
        assert worker_case.searched_by_command(place, n_trials=wanted, workers=1) == 0
        trials = worker_case.only_run(place).read_trials()
        complete = [one for one in trials if one.state == "complete"]
        assert complete[: len(kept)] == kept
        assert len(complete) == wanted
        assert all(one.failure == "interrupted" for one in trials if one.state == "failed")
        assert front_numbers(complete) == front_numbers(trials)


def front_numbers(trials: list[Trial]) -> list[int]:
    return [one.number for one in front(trials)]
