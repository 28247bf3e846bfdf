"""A time limit ends a search; the clock of these tests goes on only while plans are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.search_case import OUTSIDE, Recorder, evaluate, make_study

from heretic.errors import StudyError
from heretic.events import SearchFinished, TrialFinished
from heretic.records import Plan, Score
from heretic.search import limits, pace, trying
from heretic.search import study as study_module
from heretic.search.limits import TimeLimit
from heretic.search.study import MAX_FAILURES

A_TRIAL = 10.0
"""Seconds of each trial."""


class Clock:
    """A clock that stands still between evaluations."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def evaluate(self, plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
        """Evaluate plans, each in `A_TRIAL` seconds."""
        self.now += A_TRIAL * len(plans)
        return evaluate(plans)

    def limit(self, seconds: float, used: float = 0.0) -> TimeLimit:
        """A limit of which some seconds are used."""
        return TimeLimit(seconds, self.now - used)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (study_module, trying, limits, pace):
        monkeypatch.setattr(module, "perf_counter", made)
    return made


@pytest.mark.parametrize(
    ("seconds", "used", "trials"),
    [
        (35.0, 0.0, 3),  # a fourth would end after 40 seconds
        (30.0, 0.0, 3),  # the third ends in time
        (135.0, 100.0, 3),  # what came before the search counts
        (5.0, 0.0, 1),  # one trial is always made
        (5.0, 100.0, 1),
        (1000.0, 0.0, 6),  # the number of trials comes first
    ],
)
def test_what_comes_first_ends_the_search(
    tmp_path: Path, clock: Clock, seconds: float, used: float, trials: int
) -> None:
    recorder = Recorder()
    study = make_study(tmp_path / "run")
    limit = clock.limit(seconds, used)
    assert len(study.run(clock.evaluate, 6, recorder, time_limit=limit)) == trials
    (end,) = recorder.of(SearchFinished)
    assert end.completed == trials
    if trials == 6:
        assert (end.reason, end.time_limit) == ("done", None)
    else:
        assert (end.reason, end.n_trials, end.time_limit) == ("time", 6, seconds)


def test_a_batch_is_begun_if_all_of_it_ends_in_time(tmp_path: Path, clock: Clock) -> None:
    study = make_study(tmp_path / "run", plans_at_once=3)
    trials = study.run(clock.evaluate, 30, time_limit=clock.limit(80.0))
    assert len(trials) == 6  # three more would need 30 seconds, and 20 are left


def test_start_plans_count_too(tmp_path: Path, clock: Clock) -> None:
    study = make_study(tmp_path / "run", start_plans=OUTSIDE)
    trials = study.run(clock.evaluate, 30, time_limit=clock.limit(25.0), start_plans_only=True)
    assert [trial.plan for trial in trials] == list(OUTSIDE[:2])


def test_what_is_left_is_told_by_the_limit(tmp_path: Path, clock: Clock) -> None:
    recorder = Recorder()
    make_study(tmp_path / "run").run(clock.evaluate, 6, recorder, time_limit=clock.limit(45.0))
    assert [event.remaining for event in recorder.of(TrialFinished)] == [35.0, 25.0, 15.0, 5.0]


def test_a_search_that_goes_on_has_new_time(tmp_path: Path, clock: Clock) -> None:
    make_study(tmp_path / "cut").run(clock.evaluate, 9, time_limit=clock.limit(30.0))
    make_study(tmp_path / "cut").run(clock.evaluate, 9, time_limit=clock.limit(5.0))
    again = make_study(tmp_path / "cut").run(clock.evaluate, 9)
    whole = make_study(tmp_path / "whole").run(clock.evaluate, 9)
    assert [trial.plan for trial in again] == [trial.plan for trial in whole]


def test_failures_are_no_trials(tmp_path: Path, clock: Clock) -> None:
    calls = iter(range(100))

    def late(plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
        if next(calls) < 3:
            clock.now += A_TRIAL
            raise RuntimeError("it broke")
        return clock.evaluate(plans)

    trials = make_study(tmp_path / "run").run(late, 9, time_limit=clock.limit(5.0))
    assert [trial.state for trial in trials] == ["failed"] * 3 + ["complete"]

    def never(plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
        raise RuntimeError("it broke")

    study = make_study(tmp_path / "never")
    with pytest.raises(StudyError):
        study.run(never, 9, time_limit=clock.limit(5.0))
    assert len(study.trials) == MAX_FAILURES


class TestBetweenBatches:
    def test_its_time_counts_for_no_limit_and_no_estimate(
        self, tmp_path: Path, clock: Clock
    ) -> None:
        def pause(_: bool) -> bool:
            clock.now += 1000.0
            return True

        recorder = Recorder()
        study = make_study(tmp_path / "run")
        limit = clock.limit(35.0)
        study.run(clock.evaluate, 6, recorder, time_limit=limit, between_batches=pause)
        assert len(study.trials) == 3
        ended = recorder.of(TrialFinished)
        assert [event.elapsed for event in ended] == [10.0, 20.0, 30.0]
        assert ended[0].remaining == 25.0
        assert recorder.of(SearchFinished)[0].time_limit == 35.0

    def test_it_comes_before_each_batch(self, tmp_path: Path) -> None:
        completed: list[int] = []
        study = make_study(tmp_path / "run", plans_at_once=2)

        def count(may_hold: bool) -> bool:
            completed.append(study.completed)
            return may_hold

        study.run(evaluate, 5, between_batches=count)
        assert completed == [0, 2, 4]

    def test_it_ends_the_search_and_no_trial_is_lost(self, tmp_path: Path) -> None:
        recorder, study = Recorder(), make_study(tmp_path / "cut")

        def stop(_: bool) -> bool:
            if study.completed == 3:
                raise KeyboardInterrupt
            return True

        with pytest.raises(KeyboardInterrupt):
            study.run(evaluate, 9, recorder, between_batches=stop)
        assert recorder.of(SearchFinished)[0].reason == "interrupted"
        assert [trial.state for trial in study.trials] == ["complete"] * 3
        again, whole = study.run(evaluate, 9), make_study(tmp_path / "whole").run(evaluate, 9)
        assert [trial.plan for trial in again] == [trial.plan for trial in whole]
