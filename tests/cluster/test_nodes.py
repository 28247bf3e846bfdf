"""A Ray of several nodes: one is lost and another comes; nobody joins it by mistake."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.support import tiny
from tests.support.ray_nodes import N_TRIALS
from tests.support.search_case import evaluate, make_study

from heretic.cluster.ray_crew import Share
from heretic.cluster.ray_start import check_address, held_signals, share_of
from heretic.config import Settings
from heretic.errors import HereticError, SettingsError
from heretic.pipeline.opening import check_before_work
from heretic.pipeline.workers import check_nodes, check_workers, proofs
from heretic.system.machine import differences

GPUS = {"CPU": 16.0, "GPU": 4.0}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program says of its search; made once, since it starts three nodes."""
    if find_spec("ray") is None:
        pytest.skip("the extra `ray` is not installed")
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "tests.support.ray_nodes", str(folder)]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}  # workers find the tests by it
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return said


def test_a_lost_node_loses_no_plan(found: dict[str, Any], tmp_path: Path):
    alone = make_study(tmp_path, n_startup_trials=1000).run(evaluate, N_TRIALS)
    assert found["scores"] == [[score.value for score in one.scores] for one in alone]
    assert any("started again" in text for text in found["warnings"])


def test_each_worker_takes_its_share_of_the_nodes(found: dict[str, Any]):
    assert found["share"] == [1, 1]


def test_a_cluster_that_lets_in_anybody_is_not_joined(found: dict[str, Any]):
    assert found["open"] == "joined"
    assert "no authentication (it did not refuse a process with a wrong token)" in found["refusal"]
    assert "--allow-unauthenticated" in found["refusal"]


def test_without_a_token_no_cluster_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(HereticError, match="does not say that it uses a token"):
        check_address("head:6379", allow_unauthenticated=False)
    check_address("head:6379", allow_unauthenticated=True)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check_address("head:6379", allow_unauthenticated=False)


def test_a_cluster_without_workers_is_a_mistake():
    with pytest.raises(SettingsError, match="workers is 0"):
        check_workers(Settings(model="m", ray_address="auto"))
    check_workers(Settings(model="m"))


def test_gpus_that_are_not_there_are_told_before_any_work():
    with pytest.raises(HereticError, match="need 2000 GPUs, and this machine has"):
        check_workers(Settings.restore({"model": "m", "workers": 2, "gpus_per_worker": 1000}))


def test_a_cluster_where_no_node_holds_a_worker_is_refused():
    with pytest.raises(HereticError, match="needs 8 GPUs on one node"):
        check_nodes([GPUS, GPUS], 8)
    check_nodes([GPUS], 4)
    check_nodes([{"CPU": 1.0}], 0)


def test_what_nodes_are_asked_first_holds_no_key_of_a_scorer(tmp_path: Path):
    model = str(tiny.folder(tmp_path / "Tiny-Base"))
    settings = Settings(model=model, scorer={"refusals": {"api_key": "not to be told"}})
    assert "not to be told" in str(settings.to_dict())
    ask, wanted = proofs(settings)
    assert ask() == wanted
    assert b"not to be told" not in pickle.dumps(ask)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_ray_has_started(number):
    reached = []

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, ended)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: SIM117, PT012
            with held_signals():
                signal.raise_signal(number)
                reached.append(number)
        assert signal.getsignal(number) is ended
    finally:
        signal.signal(number, before)
    assert reached == [number]


def test_what_does_not_search_is_not_refused_for_its_workers(tmp_path: Path):
    """Such as an export of a run whose search had workers, where Ray is missing."""
    settings = Settings(model=str(tiny.folder(tmp_path / "Tiny-Base")), ray_address="auto")
    assert check_before_work(settings)


def test_an_address_for_clients_is_refused():
    with pytest.raises(HereticError, match="an address for Ray clients"):
        check_address("ray://head:10001", allow_unauthenticated=True)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "share"),
    [
        ([{"CPU": 2.0}], 2, 0, Share(1, 1, 0)),
        ([{"CPU": 8.0}], 2, 0, Share(4, 4, 0)),
        ([{"CPU": 8.0}, {"CPU": 8.0}], 3, 0, Share(4, 4, 0)),  # not 16 // 3: 5 fit twice only
        ([{"CPU": 2.0}], 3, 0, Share(1, 0, 0)),  # more workers than processors
        ([GPUS], 2, 2, Share(8, 8, 2)),
        ([GPUS, GPUS], 4, 2, Share(8, 8, 2)),
        ([GPUS], 4, 2, Share(1, 0, 2)),  # two of them wait for another node
        ([], 1, 0, Share(1, 0, 0)),
    ],
)
def test_all_workers_have_a_place_with_as_many_threads_as_possible(nodes, workers, gpus, share):
    assert share_of(nodes, workers, gpus) == share


def test_what_differs_is_named_and_what_is_equal_is_not():
    told = differences({"torch": "2.9", "numpy": "2.0"}, {"torch": "2.8", "numpy": "2.0"})
    assert told == "torch 2.8 and not 2.9"
    assert differences({"a": "1"}, {}) == "a none and not 1"
    assert differences({"a": "1"}, {"a": "1"}) == ""
