"""Real processes on a real PostgreSQL: one is killed, the database is killed, both come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

import pytest
from tests.support import worker_case
from tests.support.postgres import Postgres, binaries, postgres
from tests.support.ray_case import trials_in
from tests.support.search_case import Recorder, evaluate, make_study
from tests.support.shared_case import hastened, shared, stuck_of

from heretic.errors import StudyError
from heretic.main import main
from heretic.runs.folder import RunFolder

if binaries() is None:
    pytest.skip("neither the system nor the extra `dev` has a PostgreSQL", allow_module_level=True)
pytest.importorskip("psycopg")

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as found:
        yield found


def started(
    url: str, folder: Path, n_trials: int, seconds: float, plans_that_end: float = inf
) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "tests.support.shared_case", url, str(folder)]
    return subprocess.Popen(
        [*command, str(n_trials), str(seconds), str(plans_that_end)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def awaited(condition: Callable[[], bool], *processes: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        for one in processes:
            assert one.poll() is None, one.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_kills_lose_nothing_but_the_plan_in_hand(server: Postgres, tmp_path: Path):
    """One process is killed in the middle of a plan, then the database under the other."""
    folders = [tmp_path / "a", tmp_path / "b"]
    first = started(server.url, folders[0], 9, 0.3)
    second = started(server.url, folders[1], 9, 0.0, plans_that_end=1)
    try:
        # Only so is it sure that the second is killed in the middle of a plan.
        stuck, journal = stuck_of(folders[1]), folders[0] / "trials.journal"
        awaited(lambda: stuck.exists() and trials_in(journal) >= 2, first, second)
        second.kill()
        second.wait()
        server.kill()
        time.sleep(3.0)  # so that the first finds nobody, on a busy machine too
        server.start()
        said = first.communicate(timeout=200)[0]
        assert first.returncode == 0, said
        assert any("does not answer" in text for text in json.loads(said.splitlines()[-1]))
        again = started(server.url, folders[1], 10, 0.0)
        said += again.communicate(timeout=200)[0]
        assert again.returncode == 0, said
    finally:
        for one in (first, second):
            one.kill()
    mine, other = (RunFolder(folder).read_trials() for folder in folders)
    assert other[: len(mine)] == mine
    complete = [one for one in mine if one.state == "complete"]
    assert len(complete) == 9
    assert len({one.plan for one in complete}) == 9
    assert [one.failure for one in mine if one.state == "failed"] in ([], ["interrupted"])
    assert sum(one.state == "complete" for one in other) == 10
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "canary" not in said
    assert b"canary" not in kept


def test_a_storage_that_stays_away_ends_the_search_and_keeps_all(server: Postgres, tmp_path: Path):
    def deserted(plans):
        if study.completed == 2:
            server.kill()
        return evaluate(plans)

    recorder, name = Recorder(), "another"
    said = "does not answer: "
    with (
        pytest.raises(StudyError, match=said) as caught,
        hastened(patience=1.0),
        shared(server.url, tmp_path, recorder, name) as (study, _),
    ):
        study.run(deserted, 6)
    server.start()
    assert "canary" not in str(caught.value)
    assert "canary" not in repr(recorder.events)
    kept = RunFolder(tmp_path).read_trials()
    assert [one.state for one in kept] == ["complete"] * 3
    with hastened(), shared(server.url, tmp_path, name=name) as (study, remote):
        found = study.run(evaluate, 4)
        assert [one.state.name for one in remote.trials()] == ["COMPLETE"] * 4
    assert found[:3] == kept
    assert make_study(tmp_path).run(evaluate, 5)[:4] == found


def test_a_command_tells_its_password_nowhere(server: Postgres, tmp_path: Path, capfd, monkeypatch):
    place = worker_case.make_place(tmp_path)
    monkeypatch.setenv("HERETIC_STORAGE", server.url)
    with hastened():
        assert worker_case.searched_by_command(place, n_trials=1) == 0
    (folder,) = (place / worker_case.RUNS).iterdir()
    save = ["--trial-index", "0", "--model-action", "save", "--export-strategy", "adapter"]
    assert main(["export", str(folder), *save, "--save-directory", str(place / "saved")]) == 0
    monkeypatch.setenv("HERETIC_STORAGE", server.url.replace(f":{server.port}", ":1"))
    assert worker_case.searched_by_command(place, n_trials=2) == 2
    said = "".join(capfd.readouterr())
    assert "***@127.0.0.1:1/postgres does not answer" in said
    texts = {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    found = [name for name, text in {**texts, "said": said.encode()}.items() if b"canary" in text]
    assert found == []
