"""Who scores what: lost plans are scored by others, and what keeps failing is told apart."""

from __future__ import annotations

import math
import random

import pytest
from tests.support.search_case import OUTSIDE, Recorder, evaluate, make_study
from tests.support.worker_clock import ClockCrew

from heretic.cluster.pool import FEWEST_TIMES, MAX_FAILURES, MAX_LOSSES, WorkerPool
from heretic.errors import StudyError
from heretic.records import Plan, Trial, front
from heretic.search import SearchSpace

N_TRIALS = 24
AT_RANDOM = {"n_startup_trials": 1000}
"""Where nothing hangs on what the sampler has learned: proposals then take no time."""


def pool_of(crew: ClockCrew, workers: int = 3, **options) -> tuple[WorkerPool, Recorder]:
    recorder = Recorder()
    return WorkerPool(crew, workers, recorder, **options), recorder


def objectives_of(trials: list[Trial]) -> list[tuple[float, ...]]:
    return [trial.objectives() for trial in front(trials)]


def scored(trials: list[Trial]) -> bool:
    """Whether the trials have the scores of their plans."""
    return [trial.scores for trial in trials] == evaluate([trial.plan for trial in trials])


class TestBatches:
    @pytest.mark.parametrize("workers", [1, 3])
    @pytest.mark.parametrize("at_once", [1, 2])
    def test_the_trials_are_those_of_one_process(self, workers, at_once, tmp_path):
        size = workers * at_once
        alone = make_study(tmp_path / "alone", plans_at_once=size).run(evaluate, N_TRIALS)
        chance = random.Random(1)
        crew = ClockCrew(lambda *_: chance.random())
        pool, _ = pool_of(crew, workers, at_once=at_once, in_batches=True)
        found = make_study(tmp_path / "pool").run(pool, N_TRIALS)
        assert [(one.number, one.plan, one.scores) for one in found] == [
            (one.number, one.plan, one.scores) for one in alone
        ]
        assert max(len(numbers) for _, numbers in crew.sent) == at_once

    def test_killed_workers_change_nothing(self, tmp_path):
        alone = make_study(tmp_path / "alone", plans_at_once=3, **AT_RANDOM).run(evaluate, N_TRIALS)
        crew = Killed(every=4)
        pool, recorder = pool_of(crew, in_batches=True)
        found = make_study(tmp_path / "pool", **AT_RANDOM).run(pool, N_TRIALS)
        assert [(one.number, one.scores) for one in found] == [
            (one.number, one.scores) for one in alone
        ]
        assert crew.killed >= 5
        assert len(recorder.notices("warning")) >= crew.killed


class Killed(ClockCrew):
    """A crew that loses the worker of every so many tasks."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.killed = 0

    def send(self, worker, task, batch, rivals):
        super().send(worker, task, batch, rivals)
        if len(self.sent) % self.every == 0:
            self.killed += 1
            self.kill(worker)


class TestAsynchronous:
    def test_every_worker_has_a_plan_and_the_number_is_exact(self, tmp_path):
        crew = ClockCrew(lambda worker, _: 1.0 + worker)
        pool, _ = pool_of(crew)
        found = make_study(tmp_path, **AT_RANDOM).run(pool, N_TRIALS)
        assert [one.number for one in found] == list(range(N_TRIALS))
        assert scored(found)
        shares = [sum(worker == one for one, _ in crew.sent) for worker in range(3)]
        assert shares[0] > shares[1] > shares[2] > 0

    def test_the_front_is_that_of_the_plans(self, tmp_path):
        pool, _ = pool_of(Killed(every=5))
        study = make_study(tmp_path)
        found = study.run(pool, N_TRIALS)
        plans = [one.plan for one in found]
        again = [
            Trial(number, plan, scores)
            for number, (plan, scores) in enumerate(zip(plans, evaluate(plans), strict=True))
        ]
        assert objectives_of(study.front) == objectives_of(again)

    def test_a_proposals_seed_is_its_trials_number(self, tmp_path):
        """In the start-up, where nothing is learned, the plans are then those of one process."""
        pool, _ = pool_of(ClockCrew(lambda worker, _: 3.0 - worker))
        study = make_study(tmp_path / "pool", n_startup_trials=N_TRIALS)
        alone = make_study(tmp_path / "alone", n_startup_trials=N_TRIALS)
        plans = [one.plan for one in study.run(pool, N_TRIALS)]
        assert plans == [one.plan for one in alone.run(evaluate, N_TRIALS)]

    def test_a_search_that_was_interrupted_loses_only_what_was_pending(self, tmp_path):
        class Interrupted(ClockCrew):
            def wait(self, seconds):
                if len(self.sent) > 10:
                    raise KeyboardInterrupt
                return super().wait(seconds)

        study = make_study(tmp_path, **AT_RANDOM)
        pool, _ = pool_of(Interrupted())
        with pytest.raises(KeyboardInterrupt):
            study.run(pool, N_TRIALS)
        kept = [one for one in study.trials if one.state == "complete"]
        cut = [one for one in study.trials if one.failure == "interrupted"]
        assert len(kept) + len(cut) == len(study.trials) >= 11
        assert len(cut) <= 3
        pool, _ = pool_of(ClockCrew())
        found = make_study(tmp_path, **AT_RANDOM).run(pool, N_TRIALS)
        assert [one for one in found if one in kept] == kept
        assert sum(one.state == "complete" for one in found) == N_TRIALS

    def test_start_plans_come_first_and_once(self, tmp_path):
        space = SearchSpace(24, ["attn.o_proj", "mlp.down_proj"])
        first = [
            one.plan for one in make_study(tmp_path / "a", seed=3, **AT_RANDOM).run(evaluate, 5)
        ]
        pool, _ = pool_of(ClockCrew())
        study = make_study(tmp_path / "b", start_plans=first, space=space, **AT_RANDOM)
        found = study.run(pool, N_TRIALS, start_plans_only=True)
        assert [one.plan for one in found] == first


class TestFaults:
    def test_a_plan_that_ends_its_workers_fails_alone(self, tmp_path):
        bad = make_study(tmp_path / "a", **AT_RANDOM).run(evaluate, 3)[2].plan
        crew = ClockCrew()
        crew.deadly = {bad}
        pool, recorder = pool_of(crew)
        found = make_study(tmp_path / "b", **AT_RANDOM).run(pool, N_TRIALS)
        (failed,) = [one for one in found if one.state == "failed"]
        assert failed.plan == bad
        assert f"ended {MAX_LOSSES} times" in str(failed.failure)
        assert not [text for text in recorder.notices() if "left out" in text]

    def test_one_in_a_group_fails_alone(self, tmp_path):
        bad = make_study(tmp_path / "a", **AT_RANDOM).run(evaluate, 2)[1].plan
        crew = ClockCrew()
        crew.deadly = {bad}
        pool, _ = pool_of(crew, at_once=4)
        found = make_study(tmp_path / "b", **AT_RANDOM).run(pool, N_TRIALS)
        assert [one.plan for one in found if one.state == "failed"] == [bad]

    @pytest.mark.parametrize("place", range(4))
    def test_one_in_a_group_does_not_end_the_search_of_one_worker(self, tmp_path, place):
        bad = make_study(tmp_path / "a", **AT_RANDOM).run(evaluate, 4)[place].plan
        crew = ClockCrew()
        crew.deadly = {bad}
        pool, recorder = pool_of(crew, 1, at_once=4)
        found = make_study(tmp_path / "b", **AT_RANDOM).run(pool, 8)
        assert [one.plan for one in found if one.state == "failed"] == [bad]
        assert not [text for text in recorder.notices() if "left out" in text]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_neither_do_several_in_a_row(self, tmp_path, workers):
        bad = [one.plan for one in make_study(tmp_path / "a", **AT_RANDOM).run(evaluate, 6)[2:]]
        crew = ClockCrew()
        crew.deadly = set(bad)
        pool, recorder = pool_of(crew, workers)
        found = make_study(tmp_path / "b", **AT_RANDOM).run(pool, 8)
        assert [one.plan for one in found if one.state == "failed"] == bad
        assert not [text for text in recorder.notices() if "left out" in text]

    def test_a_worker_that_any_plan_ends_is_left_out_and_no_plan_fails(self, tmp_path):
        class Weak(ClockCrew):
            def send(self, worker, task, batch, rivals):
                super().send(worker, task, batch, rivals)
                if worker == 0:
                    self.kill(worker)

        crew = Weak(lambda *_: 100.0)  # the others are busy while it starts again
        pool, recorder = pool_of(crew)
        found = make_study(tmp_path, **AT_RANDOM).run(pool, N_TRIALS)
        assert scored(found)
        assert any("Worker 0 on here is left out" in text for text in recorder.notices("warning"))

    @pytest.mark.parametrize("in_batches", [True, False])
    def test_no_plan_waits_for_a_worker_that_never_comes(self, tmp_path, in_batches):
        crew = Half()
        pool, recorder = pool_of(crew, 2, in_batches=in_batches)
        found = make_study(tmp_path, **AT_RANDOM).run(pool, 12)
        assert [one.number for one in found if one.state == "failed"] == [3]
        assert not [text for text in recorder.notices() if "2 of 2 workers" in text]

    def test_it_is_said_that_no_worker_comes(self, tmp_path):
        class Nobody(ClockCrew):
            def start(self, worker):
                pass

            def wait(self, seconds):
                if self.now() > 1000:
                    raise KeyboardInterrupt
                return super().wait(seconds)

        pool, recorder = pool_of(Nobody(), needs="2 CPUs and 8 GPUs")
        with pytest.raises(KeyboardInterrupt):
            make_study(tmp_path, **AT_RANDOM).run(pool, 12)
        (told,) = recorder.notices("warning")
        assert "3 of 3 workers are not ready" in told
        assert "2 CPUs and 8 GPUs on one node" in told

    def test_in_batches_a_worker_that_is_left_out_changes_no_proposal(self, tmp_path):
        alone = make_study(tmp_path / "alone", plans_at_once=3).run(evaluate, N_TRIALS)
        crew = ClockCrew()
        crew.unfit = {2}
        pool, _ = pool_of(crew, in_batches=True)
        found = make_study(tmp_path / "pool").run(pool, N_TRIALS)
        assert [one.plan for one in found] == [one.plan for one in alone]

    def test_a_worker_that_answered_in_a_pause_does_not_hang(self, tmp_path):
        """It was overtaken, and its answer came while nobody listened."""

        def seconds(worker, plan):
            return 60.0 if worker == 0 and len(crew.sent) == 3 * FEWEST_TIMES + 1 else 1.0

        crew = ClockCrew(seconds)
        study = make_study(tmp_path, **AT_RANDOM)

        def pause(may_hold: bool) -> bool:
            if may_hold and study.completed > 3 * FEWEST_TIMES:
                crew.pass_by(200.0)
            return True

        pool, recorder = pool_of(crew, in_batches=True)
        study.run(pool, 2 * N_TRIALS, between_batches=pause)
        assert not recorder.notices("warning")

    def test_a_worker_on_which_all_fails_is_left_out(self, tmp_path):
        crew = ClockCrew()
        crew.broken = {1}
        pool, recorder = pool_of(crew)
        found = make_study(tmp_path, **AT_RANDOM).run(pool, N_TRIALS)
        assert all(one.state == "complete" for one in found)
        (text,) = [text for text in recorder.notices("warning") if "left out" in text]
        assert "Worker 1 on here" in text
        assert "it broke" in text
        # It has one more plan while others show that the plans before it were not at fault.
        assert sum(worker == 1 for worker, _ in crew.sent) <= MAX_FAILURES + 1

    def test_a_plan_that_fails_everywhere_has_failed(self, tmp_path):
        crew = ClockCrew()
        crew.broken = {0, 1, 2}
        pool, recorder = pool_of(crew)
        with pytest.raises(StudyError, match="trials in a row failed"):
            make_study(tmp_path, **AT_RANDOM).run(pool, N_TRIALS)
        assert not [text for text in recorder.notices() if "left out" in text]

    def test_a_node_with_something_else_is_left_out(self, tmp_path):
        crew = ClockCrew()
        crew.unfit = {2}
        pool, recorder = pool_of(crew)
        found = make_study(tmp_path, **AT_RANDOM).run(pool, N_TRIALS)
        assert scored(found)
        assert {worker for worker, _ in crew.sent} == {0, 1}
        assert any("it has other weights" in text for text in recorder.notices("warning"))

    def test_without_workers_the_search_ends_and_says_why(self, tmp_path):
        crew = ClockCrew()
        crew.unfit = {0, 1, 2}
        pool, _ = pool_of(crew)
        with pytest.raises(StudyError, match=r"No worker is left.*it has other weights"):
            make_study(tmp_path, **AT_RANDOM).run(pool, N_TRIALS)

    def test_a_worker_that_ends_whenever_it_starts_is_left_out(self, tmp_path):
        class Dying(ClockCrew):
            def start(self, worker):
                super().start(worker)
                if worker == 0:
                    self.kill(worker)

        crew = Dying()
        pool, recorder = pool_of(crew)
        found = make_study(tmp_path, **AT_RANDOM).run(pool, N_TRIALS)
        assert len(found) == N_TRIALS
        assert crew.starts.count(0) == MAX_FAILURES
        assert any("Worker 0 is left out" in text for text in recorder.notices("warning"))

    def test_a_straggler_is_given_to_another_and_the_first_answer_counts(self, tmp_path):
        slow: list[Plan] = []

        def seconds(worker, plan):
            if worker == 0 and len(slow) < 1 and len(crew.sent) > 3 * FEWEST_TIMES:
                slow.append(plan)
                return math.inf
            return 1.0

        crew = ClockCrew(seconds)
        pool, _ = pool_of(crew)
        found = make_study(tmp_path, **AT_RANDOM).run(pool, N_TRIALS)
        assert sum(one.state == "complete" for one in found) == N_TRIALS
        (number,) = [one.number for one in found if one.plan in slow]
        workers = [worker for worker, numbers in crew.sent if number in numbers]
        assert workers[0] == 0
        assert len(workers) == 2

    @pytest.mark.parametrize(("seconds", "state"), [(8.0, "complete"), (math.inf, "failed")])
    def test_a_straggler_is_given_last_to_whom_it_failed_on(self, seconds, state):
        """Two failures on one worker would say that the plan is at fault."""

        class Choosy(ClockCrew):
            def _trial(self, worker, number, plan):
                if (worker, number) == (0, 2 * FEWEST_TIMES):
                    return Trial(number, plan, (), "failed", "RuntimeError: it broke")
                return super()._trial(worker, number, plan)

        crew = Choosy(lambda worker, plan: seconds if plan == OUTSIDE[1] and worker == 1 else 1.0)
        pool, _ = pool_of(crew, 2)
        for number in range(2 * FEWEST_TIMES):
            pool.hand_in([(number, OUTSIDE[0])])
            pool.take()
        pool.hand_in([(2 * FEWEST_TIMES, OUTSIDE[1])])
        (found,) = pool.take()
        assert found.state == state

    def test_a_copy_that_fails_does_not_end_the_other(self):
        """The second worker is at fault; the first one is slow, and still answers."""

        class Choosy(ClockCrew):
            def _trial(self, worker, number, plan):
                if (worker, number) == (1, 2 * FEWEST_TIMES):
                    return Trial(number, plan, (), "failed", "RuntimeError: it broke")
                return super()._trial(worker, number, plan)

        crew = Choosy(lambda worker, plan: 8.0 if plan == OUTSIDE[1] and worker == 0 else 1.0)
        pool, recorder = pool_of(crew, 2)
        for number in range(2 * FEWEST_TIMES):
            pool.hand_in([(number, OUTSIDE[0])])
            pool.take()
        pool.hand_in([(2 * FEWEST_TIMES, OUTSIDE[1])])
        begun = crew.now()
        (found,) = pool.take()
        assert found.state == "complete"
        assert crew.now() - begun < 10.0
        workers = [worker for worker, numbers in crew.sent if 2 * FEWEST_TIMES in numbers]
        assert workers == [0, 1]
        assert not recorder.notices("warning")

    def test_a_worker_that_hangs_is_replaced(self, tmp_path):
        """In batches, since an asynchronous search does without it until the end."""
        hung: list[int] = []

        def seconds(worker, plan):
            if len(crew.sent) == 3 * FEWEST_TIMES:
                hung.append(worker)
                return math.inf
            return 1.0

        crew = ClockCrew(seconds)
        pool, recorder = pool_of(crew, in_batches=True)
        found = make_study(tmp_path, **AT_RANDOM).run(pool, 2 * N_TRIALS)
        assert len(found) == 2 * N_TRIALS
        assert crew.starts.count(hung[0]) == 2
        assert any("did not answer" in text for text in recorder.notices("warning"))


class Half(ClockCrew):
    """A crew whose worker 1 never comes, and whose plan 3 always fails."""

    def start(self, worker):
        if worker == 0:
            super().start(worker)

    def wait(self, seconds):
        assert self.now() < 1000
        return super().wait(seconds)

    def _trial(self, worker, number, plan):
        if number == 3:
            return Trial(number, plan, (), "failed", "ValueError: score is nan")
        return super()._trial(worker, number, plan)


def test_that_the_first_worker_is_ready_is_told_once(tmp_path):
    pool, recorder = pool_of(ClockCrew())
    make_study(tmp_path, **AT_RANDOM).run(pool, 6)
    assert recorder.notices() == ["The first of 3 workers is ready."]


def test_rivals_are_handed_on_while_others_score(tmp_path):
    crew = ClockCrew(lambda worker, _: 1.0 + worker)
    study = make_study(tmp_path, **AT_RANDOM)
    rivals = lambda: [one.objectives() for one in study.front]  # noqa: E731
    pool = WorkerPool(crew, 3, Recorder(), rivals=rivals)
    study.run(pool, N_TRIALS)
    reached = {one.objectives() for one in study.trials}
    assert all(set(rivals) <= reached for _, rivals in crew.told)
    assert len(crew.told[-1][1]) > len(crew.told[0][1])
