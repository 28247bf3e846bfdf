"""A long search: what a trial costs does not depend on how many there were before."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.search_case import N_STARTUP, Recorder, evaluate, make_study

from heretic.events import TrialFinished
from heretic.records import front
from heretic.runs.journal import read_trials
from heretic.search import learned as learning
from heretic.search.learned import Learned

MOST = 8
N_TRIALS = 12  # more than are learned from


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that short searches reach."""
    monkeypatch.setattr(learning, "MOST_LEARNED_FROM", MOST)


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[float, ...]]]:
    """The values of the complete trials that each proposal was computed from."""
    found: list[list[tuple[float, ...]]] = []
    original = Learned.of

    def spy(self, trials, seed):
        trials = original(self, trials, seed)
        found.append([tuple(trial.values) for trial in trials if trial.values])
        return trials

    monkeypatch.setattr(Learned, "of", spy)
    return found


def plans(path: Path, n_trials: int, **options) -> list[object]:
    return [trial.plan for trial in make_study(path, **options).run(evaluate, n_trials)]


@pytest.mark.parametrize("kind", ["tpe", "gp"])
class TestSampler:
    def test_learns_from_few_trials_whatever_their_number(self, tmp_path, few, learned, kind):
        plans(tmp_path / "run", N_TRIALS, sampler=kind)
        expected = [0 if n < N_STARTUP else min(n, MOST) for n in range(N_TRIALS)]
        assert [len(values) for values in learned] == expected

    def test_learns_from_the_front_first(self, tmp_path, few, learned, kind):
        study = make_study(tmp_path / "run", sampler=kind)
        trials = study.run(evaluate, N_TRIALS)
        for count, values in list(enumerate(learned))[N_STARTUP:]:
            best = [trial.objectives() for trial in front(trials[:count])]
            kept = set(best) & set(values)
            assert len(kept) >= min(len(best), MOST // 2)

    def test_an_interrupted_search_proposes_the_same(self, tmp_path, few, kind):
        whole = plans(tmp_path / "whole", N_TRIALS, sampler=kind)
        plans(tmp_path / "run", MOST + 2, sampler=kind)
        assert plans(tmp_path / "run", N_TRIALS, sampler=kind) == whole
        assert len(set(whole)) == N_TRIALS

    def test_below_the_bound_nothing_changes(self, tmp_path, monkeypatch, kind):
        whole = plans(tmp_path / "whole", MOST + 1, sampler=kind)
        monkeypatch.setattr(learning, "MOST_LEARNED_FROM", MOST)
        assert plans(tmp_path / "run", MOST + 1, sampler=kind) == whole


def test_start_up_trials_are_all_learned_from(tmp_path, few, learned):
    """Otherwise the sampler would wait for them for ever."""
    plans(tmp_path / "run", N_TRIALS, n_startup_trials=N_TRIALS - 2)
    assert max(map(len, learned)) == N_TRIALS - 2


def test_it_still_learns(tmp_path, few):
    trials = make_study(tmp_path / "run").run(evaluate, 40)
    values = [sum(trial.objectives()) for trial in trials]
    assert sum(values[-15:]) / 15 < sum(values[:N_STARTUP]) / N_STARTUP


def test_the_journal_grows_by_the_same_for_each_trial(tmp_path):
    study = make_study(tmp_path / "run")
    study.run(evaluate, 40)
    lines = study.folder.journal_path.read_bytes().splitlines()
    assert len(lines) == 1 + 3 * 40  # a plan, a record, and Optuna's state
    lengths = [sum(map(len, lines[i : i + 3])) for i in range(1, len(lines), 3)]
    assert max(lengths) < 1.3 * min(lengths)


def test_the_journal_is_not_read_again_for_each_trial(tmp_path, monkeypatch):
    times = []
    original = read_trials

    def counted(*given):
        times.append(1)
        return original(*given)

    monkeypatch.setattr("heretic.runs.folder.read_trials", counted)
    study = make_study(tmp_path / "run")

    def with_rivals(given):
        assert study.front == front(study.trials)
        return evaluate(given)

    study.run(with_rivals, 12)
    assert len(times) == 2  # before and after open trials are closed


def test_the_front_is_the_same_as_that_of_all_trials(tmp_path):
    recorder = Recorder()
    trials = make_study(tmp_path / "run").run(evaluate, 30, recorder)
    for count, event in enumerate(recorder.of(TrialFinished), start=1):
        assert list(event.front) == front(trials[:count])
