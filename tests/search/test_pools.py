"""A search whose plans are scored elsewhere: stops, limits, changes of mode, start plans."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.support.search_case import OUTSIDE, Recorder, evaluate, make_study
from tests.support.worker_clock import ClockCrew

from heretic.cluster.pool import WorkerPool
from heretic.events import SearchFinished, TrialFinished
from heretic.records import Plan, Trial
from heretic.search import limits, pace
from heretic.search import study as study_module
from heretic.search.limits import TimeLimit

AT_RANDOM: Any = {"n_startup_trials": 1000}


class Stopped(ClockCrew):
    """A crew whose search gets Ctrl+C after so many seconds."""

    def __init__(self, after: float, *options: Any) -> None:
        super().__init__(*options)
        self.after = after

    def wait(self, seconds):
        if self.now() >= self.after:
            raise KeyboardInterrupt
        return super().wait(seconds)


def pool_of(crew: ClockCrew, workers: int = 4, **options: Any) -> WorkerPool:
    return WorkerPool(crew, workers, Recorder(), **options)


def interrupted(folder: Path, pool: WorkerPool, n_trials: int = 40, **options: Any) -> list[Trial]:
    """Trials of a search that Ctrl+C ended."""
    study = make_study(folder, **{**AT_RANDOM, **options})
    with pytest.raises(KeyboardInterrupt):
        study.run(pool, n_trials)
    return study.trials


def states(trials: list[Trial]) -> list[str]:
    return [one.failure or one.state for one in trials]


class TestStops:
    @pytest.mark.parametrize("in_batches", [False, True])
    def test_nothing_in_hand_is_lost(self, tmp_path: Path, in_batches: bool):
        study = make_study(tmp_path, **AT_RANDOM)
        crew = ClockCrew(lambda worker, _: 1.0 + worker)

        def stop(may_hold: bool) -> bool:
            if study.completed < 5:
                return True
            if may_hold:
                raise KeyboardInterrupt
            return False

        with pytest.raises(KeyboardInterrupt):
            study.run(pool_of(crew, in_batches=in_batches), 40, between_batches=stop)
        assert 5 <= len(study.trials) < 12
        assert set(states(study.trials)) == {"complete"}
        assert len(study.trials) == sum(len(numbers) for _, numbers in crew.sent)

    def test_a_pause_takes_what_workers_have_first(self, tmp_path: Path):
        held: list[int] = []
        study = make_study(tmp_path, **AT_RANDOM)
        crew = ClockCrew(lambda worker, _: 1.0 + worker)

        def pause(may_hold: bool) -> bool:
            if study.completed < 5 or held:
                return True
            if may_hold:
                held.append(len(study.trials))
            return may_hold

        found = study.run(pool_of(crew), 20, between_batches=pause)
        assert set(states(found)) == {"complete"}
        assert len(found) == 20
        # All that were handed in before the pause had ended by then.
        assert held[0] in [sum(len(n) for _, n in crew.sent[:i]) for i in range(12)]

    def test_ctrl_c_in_a_batch_keeps_what_came_back(self, tmp_path: Path):
        crew = Stopped(30.0, lambda worker, _: math.inf if worker == 1 else 1.0)
        found = interrupted(tmp_path, pool_of(crew, in_batches=True))
        assert states(found) == ["complete", "interrupted", "complete", "complete"]


class TestSeeds:
    @pytest.mark.parametrize("in_batches", [False, True])
    def test_no_change_of_mode_proposes_a_plan_twice(self, tmp_path: Path, in_batches: bool):
        """Of those that have ended; a plan that was interrupted may come again."""
        slow = lambda worker, _: math.inf if worker == 1 else 1.0  # noqa: E731
        interrupted(tmp_path, pool_of(Stopped(12.0, slow), in_batches=in_batches))
        study = make_study(tmp_path, **AT_RANDOM)
        for mode in (False, True, False):
            study.run(pool_of(ClockCrew(), in_batches=mode), study.completed + 8)
            study.run(evaluate, study.completed + 8)
        plans = [one.plan for one in study.trials if one.state == "complete"]
        assert len(plans) > 48
        assert len(set(plans)) == len(plans)

    def test_one_process_goes_on_behind_numbers(self, tmp_path: Path):
        """Where an asynchronous search has ended, the next ordinal is its number of trials."""
        study = make_study(tmp_path / "a", **AT_RANDOM)
        study.run(pool_of(ClockCrew()), 8)
        alone = make_study(tmp_path / "b", **AT_RANDOM).run(evaluate, 12)
        assert [one.plan for one in study.run(evaluate, 12)] == [one.plan for one in alone]

    def test_a_killed_batch_is_proposed_again(self, tmp_path: Path):
        alone = make_study(tmp_path / "alone", plans_at_once=4, **AT_RANDOM).run(evaluate, 8)
        cut = interrupted(tmp_path / "a", pool_of(Stopped(5.5), in_batches=True))
        assert states(cut) == ["interrupted"] * 4
        study = make_study(tmp_path / "a", **AT_RANDOM)
        found = study.run(pool_of(ClockCrew(), in_batches=True), 8)
        assert [one.plan for one in found if one.scores] == [one.plan for one in alone]


class TestStartPlans:
    def test_workers_that_have_none_search_on(self, tmp_path: Path):
        crew = ClockCrew()
        study = make_study(tmp_path, start_plans=OUTSIDE[:2], **AT_RANDOM)
        found = study.run(pool_of(crew), 12)
        assert [one.plan for one in found[:2]] == list(OUTSIDE[:2])
        assert {worker for worker, _ in crew.sent[:4]} == {0, 1, 2, 3}
        assert [numbers for _, numbers in crew.sent[:4]] == [[0], [1], [2], [3]]

    def test_after_interruptions_they_run_together_and_none_is_dropped(self, tmp_path: Path):
        for _ in range(4):
            interrupted(tmp_path, pool_of(Stopped(5.5)), start_plans=OUTSIDE)
        crew = ClockCrew()
        study = make_study(tmp_path, start_plans=OUTSIDE, **AT_RANDOM)
        found = study.run(pool_of(crew), 4, start_plans_only=True)
        assert [one.plan for one in found if one.scores] == list(OUTSIDE)
        assert len({worker for worker, _ in crew.sent}) == 4


class TestTime:
    @pytest.fixture
    def crew(self, monkeypatch: pytest.MonkeyPatch) -> ClockCrew:
        """A crew by whose clock the search goes."""
        crew = ClockCrew(lambda *_: 10.0)
        for module in (study_module, limits, pace):
            monkeypatch.setattr(module, "perf_counter", crew.now)
        monkeypatch.setattr(crew, "_trial", lambda _, number, plan: timed(number, plan))
        return crew

    def test_loading_is_none_of_a_plans_time(self, crew, tmp_path: Path, monkeypatch):
        monkeypatch.setattr("tests.support.worker_clock.LOADING", 100.0)
        recorder = Recorder()
        study = make_study(tmp_path, **AT_RANDOM)
        study.run(pool_of(crew, 2), 40, recorder, time_limit=TimeLimit(145.0, 0.0))
        # Rounds of two end at 110, 120, 130, 140.
        assert len(study.trials) == 8
        (end,) = recorder.of(SearchFinished)
        assert (end.reason, end.completed) == ("time", 8)

    def test_a_limit_that_ends_nothing_is_not_named(self, crew, tmp_path: Path):
        recorder = Recorder()
        study = make_study(tmp_path, **AT_RANDOM)
        study.run(pool_of(crew, 2), 6, recorder, time_limit=TimeLimit(36.0, 0.0))
        (end,) = recorder.of(SearchFinished)
        assert (end.reason, end.completed, end.time_limit) == ("done", 6, None)

    @pytest.mark.parametrize("at_once", [1, 4])
    def test_what_is_left_is_told_by_workers(self, crew, at_once: int, tmp_path: Path):
        recorder = Recorder()
        study = make_study(tmp_path, **AT_RANDOM)
        study.run(pool_of(crew, 2, at_once=at_once), 24, recorder)
        told = {one.completed: one.remaining for one in recorder.of(TrialFinished)}
        assert told[8] == 80.0  # 16 plans of 10 s for two workers


def timed(number: int, plan: Plan) -> Trial:
    (scores,) = evaluate([plan])
    return Trial(number, plan, scores, seconds=10.0)
