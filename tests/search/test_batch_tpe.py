"""Several proposals of TPE from one estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from tests.support.search_case import N_STARTUP, Recorder, make_study
from tests.support.worker_clock import ClockCrew

from heretic.cluster.pool import WorkerPool
from heretic.search.agenda import PLACES_PER_PROPOSAL
from heretic.search.batch_tpe import CANDIDATES, BatchTPE
from heretic.search.sampler import OptunaStudy, quiet

RANGES: dict[str, optuna.distributions.BaseDistribution] = {
    **{name: optuna.distributions.FloatDistribution(-1.0, 1.0) for name in "abc"},
    "kind": optuna.distributions.CategoricalDistribution(("left", "right")),
}


def trials(count: int) -> list[optuna.trial.FrozenTrial]:
    """Complete trials whose values are smallest in the middle of the ranges."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        a, b, c = (float(rng.uniform(-1, 1)) for _ in "abc")
        params = {"a": a, "b": b, "c": c, "kind": "left"}
        values = [abs(a), abs(a) + abs(b)]
        found.append(optuna.trial.create_trial(values=values, params=params, distributions=RANGES))
    return found


def asked(sampler: optuna.samplers.BaseSampler, known: int = 40) -> dict[str, Any]:
    """The parameters of what a sampler proposes after some trials."""
    with quiet():
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        study.add_trials(trials(known))
        return study.ask(RANGES).params


def test_one_proposal_is_that_of_optuna():
    with quiet():
        plain = optuna.samplers.TPESampler(
            n_startup_trials=10,
            n_ei_candidates=CANDIDATES,
            multivariate=True,
            constant_liar=True,
            seed=3,
        )
        ours = BatchTPE(10, 3)
    assert asked(ours) == asked(plain)
    assert ours.others(RANGES) == []


def test_several_proposals_differ_and_are_in_range():
    with quiet():
        sampler = BatchTPE(10, 3, proposals=8)
    found = [asked(sampler), *sampler.others(RANGES)]
    assert len({tuple(one.items()) for one in found}) == len(found) == 8
    for params in found:
        assert all(
            RANGES[name]._contains(RANGES[name].to_internal_repr(params[name])) for name in RANGES
        )


def test_all_of_them_learn():
    """They gather where the good trials are; random ones would not."""
    with quiet():
        sampler = BatchTPE(10, 3, proposals=32)
    found = [asked(sampler, known=200), *sampler.others(RANGES)]
    assert np.mean([abs(float(one["a"])) for one in found]) < 0.25


def test_before_it_learns_there_is_one():
    with quiet():
        sampler = BatchTPE(10, 3, proposals=8)
    asked(sampler, known=9)
    assert sampler.others(RANGES) == []


@pytest.mark.parametrize(("groups", "drawn"), [(1, 1), (4, 4)])
def test_an_asynchronous_search_draws_for_many_workers_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: int, drawn: int
):
    counts: list[int] = []
    original = OptunaStudy._drawn

    def spy(self, seed, count):
        found = original(self, seed, count)
        counts.append(len(found))
        return found

    monkeypatch.setattr(OptunaStudy, "_drawn", spy)
    workers = groups * PLACES_PER_PROPOSAL
    pool = WorkerPool(ClockCrew(), workers, Recorder())
    n_trials = workers + N_STARTUP + 20
    trials = make_study(tmp_path).run(pool, n_trials)
    assert len({trial.plan for trial in trials}) == len(trials) == n_trials
    assert set(counts) == {1, drawn}  # one by one at random, before it learns
