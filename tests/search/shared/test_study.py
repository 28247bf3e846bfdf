"""A study that several processes search on: numbers, turns, deaths, and what a storage may lose."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.search_case import BOTH, OUTSIDE, Recorder, evaluate, make_study, one_by_one
from tests.support.shared_case import NAME, hastened, shared
from tests.support.worker_clock import ClockCrew

from heretic.cluster.pool import WorkerPool
from heretic.errors import RunError, StudyError
from heretic.events import SearchFinished, Silent, TrialFinished
from heretic.records import Score, Trial
from heretic.runs.folder import RunFolder
from heretic.runs.journal import TRIAL_KEY
from heretic.search import study as study_module
from heretic.search.limits import TimeLimit
from heretic.search.shared.beginning import push_trials
from heretic.search.shared.remote import Remote, connected, plan_of
from heretic.search.shared.study import SharedStudy


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the tables of a storage: they take most of a second to make."""
    path = tmp_path_factory.mktemp("empty") / "study.db"
    with connected(f"sqlite:///{path}", NAME, Silent()):
        pass
    return path


@pytest.fixture
def url(empty: Path, tmp_path: Path) -> Iterator[str]:
    shutil.copy(empty, tmp_path / "study.db")
    with hastened():
        yield f"sqlite:///{tmp_path / 'study.db'}"


def numbered(trials: list[Trial]) -> list[tuple[object, ...]]:
    """What has to be equal in two run folders: all but the times."""
    return [(one.number, one.plan, one.state, one.scores, one.failure) for one in trials]


def begun_by(remote: Remote, folder: Path) -> int:
    """Another process takes a plan."""
    remote.search(["minimize", "minimize"])
    number = remote.reserve()
    remote.assign(number, OUTSIDE[0], {}, {})
    return number


def test_one_process_searches_as_without_a_storage(url: str, tmp_path: Path):
    alone = make_study(tmp_path / "alone", n_startup_trials=3).run(evaluate, 5)
    with shared(url, tmp_path / "shared", n_startup_trials=3) as (study, _):
        found = study.run(evaluate, 5)
    assert numbered(found) == numbered(alone)
    # Without the storage it goes on from its own journal, and tries nothing twice.
    more = make_study(tmp_path / "shared").run(evaluate, 7)
    assert len({one.plan for one in more}) == 7


def test_who_joins_has_all_trials_in_a_folder_of_its_own(url: str, tmp_path: Path):
    with shared(url, tmp_path / "a", start_plans=OUTSIDE[:2]) as (study, _):
        first = study.run(evaluate, 3)
    recorder = Recorder()
    with shared(url, tmp_path / "b", start_plans=OUTSIDE[:2]) as (study, _):
        second = study.run(evaluate, 5, recorder)
    assert numbered(second[:3]) == numbered(first)
    assert [one.plan for one in second[:2]] == list(OUTSIDE[:2])
    assert len({one.plan for one in second}) == 5
    assert len(recorder.of(TrialFinished)) == 2
    assert RunFolder(tmp_path / "b").read_trials() == second


def test_trials_that_others_have_are_awaited_and_count(url: str, tmp_path: Path):
    with shared(url, tmp_path / "a") as (study, _), connected(url, NAME, Silent()) as other:
        number = begun_by(other, tmp_path)
        seen: list[int] = []

        def evaluated(plans):
            seen.append(study.completed)
            if len(seen) == 3:  # the other one ends in the middle of the search
                (scores,) = evaluate([OUTSIDE[0]])
                other.finish(Trial(number, OUTSIDE[0], scores, seconds=1.0))
            return evaluate(plans)

        found = study.run(evaluated, 4)
        assert len(seen) == 3
        assert [one.number for one in found] == [0, 1, 2, 3]
        assert found[0].plan == OUTSIDE[0]
        assert {one.state for one in found} == {"complete"}


def test_only_trials_of_a_process_that_has_stopped_are_settled(url: str, tmp_path: Path):
    with connected(url, NAME, Silent()) as living:
        kept = begun_by(living, tmp_path)
        dead = Remote(living.storage, NAME, "dead")  # it gives no sign of life
        left = begun_by(dead, tmp_path)
        dead.reserve()  # it died before it had a plan for this one

        def evaluated(plans):
            if study.completed == 2:
                (scores,) = evaluate([OUTSIDE[0]])
                living.finish(Trial(kept, OUTSIDE[0], scores))
            return evaluate(plans)

        with shared(url, tmp_path / "a") as (study, _):
            found = study.run(evaluated, 4)
    failed = [(one.number, one.failure) for one in found if one.state == "failed"]
    assert failed == [(left, "interrupted")]
    assert [one.number for one in found if one.state == "complete"] == [kept, 3, 4, 5]


def test_scores_that_come_after_all_are_not_lost(url: str, tmp_path: Path):
    """A process that was taken for dead tells its scores as a new trial."""
    with shared(url, tmp_path / "a") as (study, _), connected(url, NAME, Silent()) as other:
        other.search(["minimize", "minimize"])

        def evaluated(plans):
            if study.completed == 2:
                other.trials()
                other.settle(2)
            return evaluate(plans)

        study.run(evaluated, 4)
        told = [plan_of(one) for one in other.trials() if one.state.name == "COMPLETE"]
    with shared(url, tmp_path / "b") as (study, _):
        found = study.run(evaluate, 3)
    assert [one.number for one in found if one.failure] == [2]
    assert found[2].plan in told
    assert found[2].plan in {one.plan for one in found if one.scores}
    assert make_study(tmp_path / "a").completed == 4


def test_start_plans_are_tried_once_by_all(url: str, tmp_path: Path):
    with connected(url, NAME, Silent()) as other:
        number = begun_by(other, tmp_path)

        def evaluated(plans):
            if plans[0] == OUTSIDE[2]:
                other.finish(Trial(number, OUTSIDE[0], evaluate([OUTSIDE[0]])[0]))
            return evaluate(plans)

        with shared(url, tmp_path / "a", start_plans=OUTSIDE) as (study, _):
            found = study.run(evaluated, 20, start_plans_only=True)
    assert [one.plan for one in found] == list(OUTSIDE)


def test_no_more_trials_than_asked_for_by_all_together(url: str, tmp_path: Path):
    with shared(url, tmp_path / "a", plans_at_once=3) as (study, _):
        assert len(study.run(evaluate, 4)) == 4
    with shared(url, tmp_path / "b", plans_at_once=3) as (study, _):
        assert len(study.run(evaluate, 4)) == 4


def test_workers_search_on_a_storage_too(url: str, tmp_path: Path):
    with shared(url, tmp_path / "a", n_startup_trials=1000) as (study, _):
        found = study.run(WorkerPool(ClockCrew(), 2, Recorder()), 4)
    alone = make_study(tmp_path / "alone", n_startup_trials=1000).run(evaluate, 4)
    assert numbered(found) == numbered(alone)


def test_trials_that_end_together_outlast_a_storage_that_does_not_answer(
    url: str, tmp_path: Path, monkeypatch
):
    """All are in the journal, on the disk, before the storage is told of the first."""
    lines: list[bytes] = []
    folder = tmp_path / "a"

    def silent(remote: Remote, trial: Trial) -> bool:
        lines.append((folder / "trials.journal").read_bytes())
        raise StudyError("It does not answer.")

    with monkeypatch.context() as patch, shared(url, folder) as (study, _):
        patch.setattr(Remote, "finish", silent)
        with pytest.raises(StudyError, match="does not answer"):
            study.run(WorkerPool(ClockCrew(), 3, Recorder()), 6)
    assert lines[0].count(TRIAL_KEY.encode()) == 3
    with shared(url, folder) as (study, _):
        kept = study.trials
        found = study.run(evaluate, 6)
    assert [one.state for one in kept] == ["complete"] * 3
    assert numbered(found[:3]) == numbered(kept)
    with shared(url, tmp_path / "b") as (study, _):
        assert numbered(study.run(evaluate, 6)) == numbered(found)


def test_ctrl_c_gives_a_plan_back_at_once(url: str, tmp_path: Path):
    def stopped(plans):
        if study.completed == 2:
            raise KeyboardInterrupt
        return evaluate(plans)

    with shared(url, tmp_path / "a", start_plans=OUTSIDE) as (study, remote):
        with pytest.raises(KeyboardInterrupt):
            study.run(stopped, 9)
        assert all(one.state.is_finished() for one in remote.trials())
    with shared(url, tmp_path / "b", start_plans=OUTSIDE) as (study, _):
        found = study.run(evaluate, 4, start_plans_only=True)
    assert [one.plan for one in found if one.scores] == list(OUTSIDE)


def test_failures_of_others_do_not_end_a_search(url: str, tmp_path: Path, monkeypatch):
    def broken(plan):
        raise ValueError("broken")

    monkeypatch.setattr(study_module, "MAX_FAILURES", 2)
    said = "in a row failed"
    with shared(url, tmp_path / "a") as (study, _), pytest.raises(StudyError, match=said):
        study.run(one_by_one(broken), 3)
    with shared(url, tmp_path / "b") as (study, _):
        found = study.run(evaluate, 1)
    assert [one.state for one in found] == ["failed"] * 2 + ["complete"]


def test_a_run_with_a_withheld_figure_goes_on(url: str, tmp_path: Path):
    """Its value is no number, which equals nothing; a worker's answer is a copy of it."""

    def withheld(plans):
        nan = float("nan")
        return [(*one, Score("more", nan, "none", "-", withheld=True)) for one in evaluate(plans)]

    objectives = (*BOTH, "none")
    with shared(url, tmp_path / "a", objectives=objectives) as (study, remote):
        found = study.run(withheld, 2)
        assert remote.finish(found[1])  # as after a loss of connection
    with shared(url, tmp_path / "a", objectives=objectives) as (study, _):
        assert len(study.run(withheld, 3)) == 3


def test_no_value_is_larger_than_the_fields_of_mysql(url: str, tmp_path: Path):
    """A figure of each of several thousand prompts is: it is kept in pieces."""
    many = tuple(1 / (3 + number) for number in range(5000))

    def large(plans):
        return [
            (replace(first, values=many, display='"\\u00fc" ' * 2000), *rest)
            for first, *rest in evaluate(plans)
        ]

    with shared(url, tmp_path / "a") as (study, _):
        found = study.run(large, 2)
    with sqlite3.connect(tmp_path / "study.db") as database:
        query = "select max(length(value_json)) from trial_user_attributes"
        ((longest,),) = database.execute(query)
    assert 30_000 < longest <= 65_535
    with shared(url, tmp_path / "b") as (study, remote):
        assert numbered(study.run(large, 3)[:2]) == numbered(found)
        assert remote.finish(found[1])  # as after a loss of connection
    with shared(url, tmp_path / "a") as (study, _):
        assert numbered(study.run(large, 3)[:2]) == numbered(found)


class TestParted:
    """A run folder and a study that do not belong together."""

    def test_what_a_run_did_alone_is_not_mixed_in(self, url: str, tmp_path: Path):
        with shared(url, tmp_path / "a") as (study, _):
            study.run(evaluate, 3)
        with shared(url, tmp_path / "b") as (study, _):
            study.run(evaluate, 3)
            make_study(tmp_path / "a").run(evaluate, 4)
            study.run(one_by_one(lambda plan: evaluate([OUTSIDE[3]])[0]), 4)
        before = RunFolder(tmp_path / "a").read_trials()
        said = r"Trial 3 .* is not trial 3 of the study"
        with shared(url, tmp_path / "a") as (study, _), pytest.raises(RunError, match=said):
            study.run(evaluate, 9)
        assert RunFolder(tmp_path / "a").read_trials() == before

    def test_a_study_that_has_lost_trials_is_not_searched_on(self, url: str, tmp_path: Path):
        with shared(url, tmp_path / "a") as (study, _):
            study.run(evaluate, 2)
            shutil.copy(tmp_path / "study.db", tmp_path / "backup.db")
            study.run(evaluate, 3)
        old = f"sqlite:///{tmp_path / 'backup.db'}"
        with shared(old, tmp_path / "a") as (study, _), pytest.raises(RunError, match="went on"):
            study.run(evaluate, 9)

    def test_an_empty_storage_is_told_all_trials(self, url: str, empty: Path, tmp_path: Path):
        with shared(url, tmp_path / "a", start_plans=OUTSIDE[:1]) as (study, _):
            first = study.run(evaluate, 3)
        other = f"sqlite:///{shutil.copy(empty, tmp_path / 'other.db')}"
        with shared(other, tmp_path / "a") as (study, remote):
            with study.folder.lock():
                assert push_trials(remote, study.folder) == 3
                assert push_trials(remote, study.folder) == 0
            assert numbered(study.run(evaluate, 4)[:3]) == numbered(first)
        with shared(other, tmp_path / "b") as (study, _):
            assert numbered(study.run(evaluate, 4)[:3]) == numbered(first)

    def test_what_was_told_in_part_is_told_to_the_end(
        self, url: str, empty: Path, tmp_path: Path, monkeypatch
    ):
        """Ctrl+C comes while a trial is put into an empty storage."""
        with shared(url, tmp_path / "a") as (study, _):
            first = study.run(evaluate, 3)
        other = f"sqlite:///{shutil.copy(empty, tmp_path / 'other.db')}"
        with shared(other, tmp_path / "a") as (study, remote), study.folder.lock():
            assign = remote.assign

            def broken_off(number, *plan):
                if number == 1:
                    raise KeyboardInterrupt
                return assign(number, *plan)

            monkeypatch.setattr(remote, "assign", broken_off)
            with pytest.raises(KeyboardInterrupt):
                push_trials(remote, study.folder)
        with shared(other, tmp_path / "a") as (study, remote):
            with study.folder.lock():
                assert push_trials(remote, study.folder) == 2
            assert numbered(study.run(evaluate, 4)[:3]) == numbered(first)


class Held:
    """A pool that keeps the first plan until the second has ended."""

    at_once, places, in_batches = 1, 2, False

    def __init__(self, on_second) -> None:
        self._plans: list[Any] = []
        self._on_second = on_second

    def hand_in(self, batch) -> None:
        self._plans += batch

    def take(self) -> list[Trial]:
        number, plan = self._plans.pop()
        if number == 1:
            self._on_second()
        return [Trial(number, plan, evaluate([plan])[0])]


class TestTakenForDead:
    """A process that slept, and whose trials others have settled."""

    def test_scores_of_a_worker_are_told_as_another_trial(self, url: str, tmp_path: Path):
        with shared(url, tmp_path / "a") as (study, _), connected(url, NAME, Silent()) as other:
            other.search(["minimize", "minimize"])

            def settle_first():
                other.trials()
                other.settle(0)

            found = study.run(Held(settle_first), 4)
            told = [plan_of(one) for one in other.trials() if one.state.name == "COMPLETE"]
        assert not [one for one in found if one.failure]
        assert found[0].plan in told

    def test_a_number_that_got_no_plan_is_left_out(self, url: str, tmp_path: Path, monkeypatch):
        with shared(url, tmp_path / "a") as (study, _), connected(url, NAME, Silent()) as other:
            other.search(["minimize", "minimize"])
            reserve = SharedStudy.reserve

            def reserved(sampler):
                number = reserve(sampler)
                if number == 1:
                    other.trials()
                    other.settle(1)
                return number

            monkeypatch.setattr(SharedStudy, "reserve", reserved)
            assert [one.number for one in study.run(evaluate, 3)] == [0, 2, 3]


class TestNobodyIsAwaitedInVain:
    """Another process has a plan in hand for as long as the search lasts."""

    def test_when_there_are_enough_trials(self, url: str, tmp_path: Path):
        with shared(url, tmp_path / "a") as (study, _), connected(url, NAME, Silent()) as other:
            study.run(evaluate, 2)
            begun_by(other, tmp_path)
            assert len(study.run(evaluate, 2)) == 2
            assert not other.trials()[2].state.is_finished()

    def test_when_the_time_is_over(self, url: str, tmp_path: Path):
        recorder = Recorder()
        limit = TimeLimit(0.5, time.perf_counter())
        with shared(url, tmp_path / "a") as (study, _), connected(url, NAME, Silent()) as other:
            begun_by(other, tmp_path)
            assert len(study.run(evaluate, 2, recorder, time_limit=limit)) <= 1
            assert not other.trials()[0].state.is_finished()
        assert [one.reason for one in recorder.of(SearchFinished)] == ["time"]


class TestWhoHasTheTurnToPropose:
    """Another process lives, has taken the next number, and proposes nothing."""

    def test_is_not_awaited_beyond_the_time_limit(self, url: str, tmp_path: Path):
        recorder = Recorder()
        with shared(url, tmp_path / "a") as (study, _), connected(url, NAME, Silent()) as other:
            other.search(["minimize", "minimize"])
            other.reserve()
            limit = TimeLimit(0.5, time.perf_counter())
            assert study.run(evaluate, 2, recorder, time_limit=limit) == []
            theirs, mine = other.trials()
            assert not theirs.state.is_finished()
            assert mine.state.is_finished()  # nobody waits for it
        assert [one.reason for one in recorder.of(SearchFinished)] == ["time"]

    @pytest.mark.parametrize("is_stopped", [False, True])
    def test_is_not_awaited_by_a_search_that_is_to_pause_or_stop(
        self, url: str, tmp_path: Path, is_stopped: bool
    ):
        asked: list[bool] = []

        def between(may_hold: bool) -> bool:
            asked.append(may_hold)
            if len(asked) == 1:
                return True
            if may_hold:  # here it holds the search, and no number that others wait for
                assert other.trials()[1].state.is_finished()
                if is_stopped:
                    raise KeyboardInterrupt
                other.settle(0)
            return may_hold

        with shared(url, tmp_path / "a") as (study, _), connected(url, NAME, Silent()) as other:
            other.search(["minimize", "minimize"])
            other.reserve()
            if is_stopped:
                with pytest.raises(KeyboardInterrupt):
                    study.run(evaluate, 1, between_batches=between)
            else:
                found = study.run(evaluate, 1, between_batches=between)
                assert [(one.number, one.state) for one in found] == [(2, "complete")]
        assert asked[:3] == [True, False, True]


def test_a_process_is_dead_by_silence_alone(url: str, tmp_path: Path):
    with connected(url, NAME, Silent()) as one, connected(url, NAME, Silent()) as other:
        assert not one.has_ended(other.me)
        assert not one.has_ended("never seen")
        time.sleep(2.5)
        assert not one.has_ended(other.me)
        assert one.has_ended("never seen")
    with connected(url, NAME, Silent()) as one:
        assert one.has_ended(other.me)  # it has said so
