"""A search that aims at the best second objective within a bound of the first."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.search_case import N_STARTUP, evaluate, make_study

from heretic.records import Plan, Trial
from heretic.search.sampler import SamplerKind

BOUND = 0.05
"""Few plans of a search for the whole front lie within it: about one in twenty."""

LENGTHS: dict[SamplerKind, int] = {"tpe": 30, "gp": 12}


def within(trials: list[Trial]) -> list[Trial]:
    """Those proposed after the start-up whose first objective is within the bound."""
    return [trial for trial in trials[N_STARTUP:] if trial.objectives()[0] <= BOUND]


def plans_of(trials: list[Trial]) -> list[Plan]:
    return [trial.plan for trial in trials]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_proposals_gather_within_the_bound(
    tmp_path: Path, sampler: SamplerKind, at_once: int
) -> None:
    found = {
        aim: make_study(tmp_path / str(aim), sampler=sampler, aim=aim, plans_at_once=at_once).run(
            evaluate, LENGTHS[sampler]
        )
        for aim in (None, BOUND)
    }
    assert plans_of(found[None])[:N_STARTUP] == plans_of(found[BOUND])[:N_STARTUP]
    aimed, broad = within(found[BOUND]), within(found[None])
    assert len(aimed) > 2 * len(broad)
    assert min(trial.objectives()[1] for trial in aimed) < min(
        (trial.objectives()[1] for trial in broad), default=9.0
    )


def test_the_run_keeps_all_objectives_and_its_front(tmp_path: Path) -> None:
    study = make_study(tmp_path / "run", aim=BOUND)
    trials = study.run(evaluate, N_STARTUP + 6)
    assert all(len(trial.objectives()) == 2 for trial in trials)
    assert len(study.front) > 1


def test_a_run_may_go_on_with_another_aim(tmp_path: Path) -> None:
    lengths = [N_STARTUP + extra for extra in (2, 4, 6)]
    for aim, length in zip((None, BOUND, 0.5), lengths, strict=True):
        make_study(tmp_path / "run", aim=aim).run(evaluate, length)
    whole = make_study(tmp_path / "whole").run(evaluate, lengths[0])
    trials = make_study(tmp_path / "run").trials
    assert len(trials) == lengths[-1]
    assert plans_of(trials)[: lengths[0]] == plans_of(whole)


def test_a_resumed_search_goes_on_as_if_uninterrupted(tmp_path: Path) -> None:
    length = N_STARTUP + 4
    for stop in (N_STARTUP + 1, length):
        cut = make_study(tmp_path / "cut", aim=BOUND).run(evaluate, stop)
    assert plans_of(cut) == plans_of(make_study(tmp_path / "w", aim=BOUND).run(evaluate, length))
