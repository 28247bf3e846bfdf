"""Batches of plans: their number is exact, each plan fails alone, and they are resumed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.search_case import N_STARTUP, OUTSIDE, Recorder, evaluate, make_study

from heretic.errors import StudyError
from heretic.events import SearchFinished, TrialFinished, TrialStarted
from heretic.records import Plan, Score, Trial
from heretic.search import SearchSpace, Study
from heretic.search.study import MAX_FAILURES

N_TRIALS = 8  # not a multiple of a batch, and beyond the start-up
KINDS = list(itertools.product(("tpe", "gp"), (1, 3, 5)))
Kind = tuple[str, int]


def batched(folder: Path, kind: Kind, **options: Any) -> Study:
    sampler, plans_at_once = kind
    return make_study(folder, sampler=sampler, plans_at_once=plans_at_once, **options)


class Watched:
    """An evaluation that keeps the plans it was given, and may raise an error."""

    def __init__(self, breaks: Callable[[Sequence[Plan], int], BaseException | None]) -> None:
        self.batches: list[list[Plan]] = []
        self._breaks = breaks

    def __call__(self, plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
        self.batches.append(list(plans))
        error = self._breaks(plans, len(self.batches) - 1)
        if error is not None:
            raise error
        return evaluate(plans)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def never(plans: Sequence[Plan], call: int) -> None:
    return None


def plans_of(trials: Sequence[Trial]) -> list[Plan]:
    return [trial.plan for trial in trials if trial.state == "complete"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], tuple[Any, Watched]]:
    """The trials of an uninterrupted search and its evaluation; made once per kind."""
    made: dict[Kind, tuple[list[Trial], Watched]] = {}

    def give(kind: Kind) -> tuple[list[Trial], Watched]:
        if kind not in made:
            watched = Watched(never)
            study = batched(tmp_path_factory.mktemp("whole"), kind)
            made[kind] = study.run(watched, N_TRIALS), watched
        return made[kind]

    return give


@pytest.mark.parametrize("kind", KINDS)
class TestOfAnySize:
    def test_the_number_of_trials_is_exact(self, kind, whole):
        trials, watched = whole(kind)
        assert [trial.number for trial in trials] == list(range(N_TRIALS))
        assert all(trial.state == "complete" and trial.seconds >= 0 for trial in trials)
        full, rest = divmod(N_TRIALS, kind[1])
        assert watched.sizes == [kind[1]] * full + [rest] * (rest > 0)
        assert [plan for batch in watched.batches for plan in batch] == plans_of(trials)
        assert [trial.scores for trial in trials] == evaluate(plans_of(trials))

    def test_the_sampler_does_not_go_blind(self, kind, whole):
        """Plans of a batch differ clearly, although none of them has scores yet."""
        space = SearchSpace(24, [name for name, _ in whole(kind)[0][0].plan.kernels])
        for batch in whole(kind)[1].batches:
            for first, second in itertools.combinations(batch, 2):
                assert distance(space, first, second) > 0.05

    def test_a_seed_fixes_them(self, kind, whole, tmp_path):
        trials = batched(tmp_path / "again", kind).run(evaluate, N_TRIALS)
        assert plans_of(trials) == plans_of(whole(kind)[0])
        other = batched(tmp_path / "other", kind, seed=8).run(evaluate, N_STARTUP)
        assert not set(plans_of(other)) & set(plans_of(trials))

    def test_an_interrupted_batch_is_proposed_again(self, kind, whole, tmp_path):
        study = batched(tmp_path / "run", kind)
        last = len(whole(kind)[1].batches) - 1
        interrupted = Watched(lambda _, call: KeyboardInterrupt() if call == last else None)
        with pytest.raises(KeyboardInterrupt):
            study.run(interrupted, N_TRIALS)
        cut = [trial for trial in study.trials if trial.failure == "interrupted"]
        assert [trial.plan for trial in cut] == whole(kind)[1].batches[-1]
        resumed = batched(tmp_path / "run", kind).run(evaluate, N_TRIALS)
        assert plans_of(resumed) == plans_of(whole(kind)[0])
        # Numbers of the trials cut short are not used again.
        assert len({trial.number for trial in resumed}) == N_TRIALS + len(cut)

    def test_one_that_breaks_fails_alone(self, kind, whole, tmp_path):
        bad = whole(kind)[1].batches[1][-1]
        watched = Watched(lambda plans, _: RuntimeError("it broke") if bad in plans else None)
        study = batched(tmp_path / "run", kind)
        recorder = Recorder()
        trials = study.run(watched, N_TRIALS, recorder)
        (failed,) = [trial for trial in trials if trial.state == "failed"]
        assert (failed.plan, failed.failure) == (bad, "RuntimeError: it broke")
        assert len(plans_of(trials)) == study.completed == N_TRIALS
        assert [trial.scores for trial in trials if trial is not failed] == evaluate(
            plans_of(trials)
        )
        started = [event.number for event in recorder.of(TrialStarted)]
        assert started == [event.trial.number for event in recorder.of(TrialFinished)]


def distance(space: SearchSpace, first: Plan, second: Plan) -> float:
    """The largest difference of a parameter, in its range; infinite where a choice differs."""
    params = [space.plan_to_params(plan) for plan in (first, second)]
    one, other = (param or {} for param in params)
    if any(one[name] != other[name] for name in space.choices):
        return float("inf")
    return max(
        abs(float(one[name]) - float(other[name])) / (bounds.high - bounds.low)
        for name, bounds in space.ranges.items()
    )


class TestScoresThatAreWrong:
    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_of_one_plan_are_its_own_failure(self, tmp_path, value):
        """The others keep their scores: nothing is evaluated again."""
        calls = []

        def odd(plans):
            calls.append(len(plans))
            scores = evaluate(plans)
            if len(calls) == 1:
                scores[1] = (scores[1][0], Score("kl_divergence", value, "minimize", "?"))
            return scores

        trials = batched(tmp_path / "run", ("tpe", 3)).run(odd, 5)
        assert [trial.state for trial in trials] == ["complete", "failed", *["complete"] * 4]
        assert trials[1].failure == f"ValueError: score kl_divergence is {value}"
        assert calls == [3, 3]

    def test_too_few_are_a_failure_of_the_batch(self, tmp_path):
        def short(plans):
            return evaluate(plans)[:2]

        trials = batched(tmp_path / "run", ("tpe", 3)).run(short, 5)
        assert [trial.state for trial in trials] == ["complete"] * 5


class TestStartPlans:
    @pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 7), (3, [3, 1, 3]), (8, [4, 3])])
    def test_come_first_and_once(self, tmp_path, size, sizes):
        a, b, c, d = OUTSIDE
        watched = Watched(never)
        study = batched(tmp_path / "run", ("gp", size), start_plans=[a, b, a, c, d, b])
        plans = plans_of(study.run(watched, 7))
        assert plans[:4] == [a, b, c, d]
        assert len(set(plans)) == 7
        assert watched.sizes == sizes

    def test_one_that_breaks_is_not_tried_again(self, tmp_path):
        bad = OUTSIDE[1]
        watched = Watched(lambda plans, _: RuntimeError("it broke") if bad in plans else None)
        study = batched(tmp_path / "run", ("tpe", 3), start_plans=OUTSIDE)
        trials = study.run(watched, 6)
        assert [trial.plan for trial in trials if trial.state == "failed"] == [bad]
        assert [trial.plan for trial in trials][:4] == list(OUTSIDE)
        assert watched.batches.count([bad]) == 1

    def test_of_an_interrupted_batch_are_tried_again(self, tmp_path):
        study = batched(tmp_path / "run", ("tpe", 3), start_plans=OUTSIDE)
        with pytest.raises(KeyboardInterrupt):
            study.run(Watched(lambda *_: KeyboardInterrupt()), 4)
        assert plans_of(study.run(evaluate, 4)) == list(OUTSIDE)

    def test_one_that_kills_is_found_and_left_out(self, tmp_path):
        deadly = OUTSIDE[1]
        watched = Watched(lambda plans, _: KeyboardInterrupt() if deadly in plans else None)
        study = batched(tmp_path / "run", ("tpe", 3), start_plans=OUTSIDE)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                study.run(watched, len(OUTSIDE))
        assert watched.batches[-1] == [deadly]  # alone, so that it takes no other plan with it
        complete = [t.plan for t in study.run(watched, len(OUTSIDE)) if t.state == "complete"]
        assert deadly not in complete
        assert set(OUTSIDE) - {deadly} <= set(complete)


@pytest.mark.parametrize("size", [3, 8])
def test_ten_failures_in_a_row_end_the_search(tmp_path, size):
    study = batched(tmp_path / "run", ("tpe", size))
    recorder = Recorder()
    broken = Watched(lambda *_: RuntimeError("it broke"))
    with pytest.raises(StudyError, match="10 trials in a row failed"):
        study.run(broken, 30, recorder)
    assert recorder.of(SearchFinished)[-1].reason == "failed"
    failures = [trial.failure for trial in study.trials]
    assert failures.count("RuntimeError: it broke") == MAX_FAILURES
    assert set(failures[MAX_FAILURES:]) <= {"interrupted"}
    assert len(plans_of(study.run(evaluate, 5))) == 5  # once the cause is mended, it goes on


def test_a_batch_that_interrupts_twice_is_given_up(tmp_path):
    study = batched(tmp_path / "run", ("tpe", 3))
    seen = []
    for _ in range(2):
        watched = Watched(lambda *_: KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            study.run(watched, 6)
        seen += watched.batches
    assert seen[0] == seen[1]
    assert not set(plans_of(study.run(evaluate, 6))) & set(seen[0])


def test_single_proposals_are_those_without_a_liar(tmp_path, monkeypatch, whole):
    """With one plan at a time, no trial is waiting for its scores."""
    import optuna

    original = optuna.samplers.TPESampler

    def honest(**options: Any) -> Any:
        return original(**{**options, "constant_liar": False})

    plans = plans_of(whole(("tpe", 1))[0])
    monkeypatch.setattr(optuna.samplers, "TPESampler", honest)
    assert plans_of(batched(tmp_path / "run", ("tpe", 1)).run(evaluate, N_TRIALS)) == plans
