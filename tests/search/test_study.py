"""The search loop: what it proposes, what it keeps, and how it resumes however it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings

import pytest
from tests.support.search_case import N_STARTUP, Recorder, evaluate, make_study, measure, one_by_one

from heretic.errors import RunError, StudyError
from heretic.events import SearchFinished, SearchStarted, TrialFinished, TrialStarted
from heretic.records import ATTENTION, MLP, Kernel, Plan, Score, Trial, front
from heretic.records.selection import names_by_row
from heretic.runs.folder import RunFolder
from heretic.runs.journal import with_check_value
from heretic.runs.manifest import SCHEMA_VERSION
from heretic.search.sampler import sampler_seed
from heretic.search.study import MAX_FAILURES

N_TRIALS = 12  # beyond the start-up, so that what the sampler has learned counts
PROGRAM = [sys.executable, "-m", "tests.support.search_case"]


@pytest.fixture
def uninterrupted(tmp_path) -> list[Plan]:
    """The plans of an uninterrupted search."""
    trials = make_study(tmp_path / "uninterrupted").run(evaluate, N_TRIALS)
    return [trial.plan for trial in trials]


def complete(trials) -> list[Trial]:
    return [trial for trial in trials if trial.state == "complete"]


def plans_of(trials) -> list[Plan]:
    return [trial.plan for trial in complete(trials)]


def failing(at: set[int], error: BaseException | None = None):
    """An evaluation that raises in the calls with these indices."""
    calls = iter(range(1000))

    def evaluate_or_fail(plans):
        if next(calls) in at:
            raise error or RuntimeError("it broke\nbadly")
        return evaluate(plans)

    return evaluate_or_fail


class TestProposals:
    def test_a_seed_fixes_them(self, tmp_path, uninterrupted):
        assert plans_of(make_study(tmp_path / "again").run(evaluate, N_TRIALS)) == uninterrupted
        other = make_study(tmp_path / "other", seed=8).run(evaluate, N_TRIALS)
        assert not set(plans_of(other)) & set(uninterrupted)

    def test_none_is_repeated(self, uninterrupted):
        assert len(set(uninterrupted)) == N_TRIALS

    @pytest.mark.parametrize("stop", [1, N_STARTUP - 1, N_STARTUP + 2])
    def test_a_resumed_search_goes_on_as_if_uninterrupted(self, tmp_path, uninterrupted, stop):
        make_study(tmp_path / "run").run(evaluate, stop)
        trials = make_study(tmp_path / "run").run(evaluate, N_TRIALS)
        assert plans_of(trials) == uninterrupted

    def test_the_same_object_can_go_on(self, tmp_path, uninterrupted):
        study = make_study(tmp_path / "run")
        for n_trials in (3, 3, N_TRIALS, 2):
            study.run(evaluate, n_trials)
        assert plans_of(study.trials) == uninterrupted

    def test_the_sampler_learns(self, tmp_path):
        trials = make_study(tmp_path / "run").run(evaluate, 40)
        values = [sum(trial.objectives()) for trial in trials]
        assert sum(values[-15:]) / 15 < sum(values[:N_STARTUP]) / N_STARTUP

    def test_sampler_is_as_specified(self, tmp_path, monkeypatch):
        import optuna

        made = []
        original = optuna.samplers.TPESampler.__init__

        def spy(self, **options):
            made.append(options)
            original(self, **options)

        monkeypatch.setattr(optuna.samplers.TPESampler, "__init__", spy)
        make_study(tmp_path / "run", n_startup_trials=60).run(evaluate, 2)
        used = [options for options in made if options]  # Optuna makes one to begin with
        assert [options.pop("seed") for options in used] == [sampler_seed(7, 0), sampler_seed(7, 1)]
        assert used[0] == {
            "n_startup_trials": 60,
            "n_ei_candidates": 128,
            "multivariate": True,
            "constant_liar": True,
        }

    def test_seeds_of_trials_differ(self):
        seeds = {sampler_seed(s, n, salt) for s in range(4) for n in range(50) for salt in range(3)}
        assert len(seeds) == 4 * 50 * 3


class TestObjectives:
    @staticmethod
    def scores(*triples):
        return tuple(Score(name, value, kind, f"{value}") for name, value, kind in triples)

    def test_one_is_maximised_and_one_only_reported(self, tmp_path):
        def gain(plan):
            (weight,) = plan.ablation_weights(ATTENTION, 20)
            return self.scores(("gain", weight, "maximize"), ("length", 5.0, "none"))

        study = make_study(tmp_path / "run", objectives=("maximize", "none"))
        trials = study.run(one_by_one(gain), 30)
        gains = [trial.scores[0].value for trial in trials]
        assert sum(gains[-10:]) / 10 > sum(gains[:N_STARTUP]) / N_STARTUP
        assert [trial.scores[0].value for trial in study.front] == [max(gains)]

    def test_three(self, tmp_path):
        def three(plan):
            (third,) = plan.ablation_weights(MLP, 20)
            return (*measure(plan), Score("third", third, "maximize", ""))

        study = make_study(tmp_path / "run", objectives=("minimize", "minimize", "maximize"))
        assert len(study.run(one_by_one(three), N_STARTUP + 3)) == N_STARTUP + 3

    @pytest.mark.parametrize("objectives", [(), ("none",), ("none", "none")])
    def test_nothing_to_search_for(self, tmp_path, objectives):
        with pytest.raises(StudyError, match="nothing to search for"):
            make_study(tmp_path / "run", objectives=objectives)

    def test_trials_of_other_objectives_are_not_mixed(self, tmp_path):
        make_study(tmp_path / "run").run(evaluate, 1)
        with pytest.raises(RunError, match="other objectives"):
            make_study(tmp_path / "run", objectives=("minimize", "maximize")).run(evaluate, 2)


class TestFailures:
    def test_are_kept_with_their_reason_and_do_not_count(self, tmp_path):
        study = make_study(tmp_path / "run")
        trials = study.run(failing({1, 3}), 4)
        assert [trial.state for trial in trials].count("failed") == 2
        assert study.completed == 4
        assert trials[1].failure == "RuntimeError: it broke badly"
        assert trials[1].scores == ()
        assert make_study(tmp_path / "run").trials == trials

    def test_another_plan_follows(self, tmp_path):
        trials = make_study(tmp_path / "run").run(failing({1}), 3)
        assert len({trial.plan for trial in trials}) == 4

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_scores_that_are_no_number(self, tmp_path, value):
        bad = Score("kl_divergence", value, "minimize", "?")
        answers = iter([False, True, False])

        def odd(plan):
            first, second = measure(plan)
            return (first, bad if next(answers) else second)

        trials = make_study(tmp_path / "run").run(one_by_one(odd), 2)
        assert [trial.state for trial in trials] == ["complete", "failed", "complete"]
        assert str(trials[1].failure) == f"ValueError: score kl_divergence is {value}"

    def test_scores_that_are_not_the_ones_agreed_upon(self, tmp_path):
        answers = iter([True, False])

        def fewer(plan):
            return measure(plan)[:1] if next(answers) else measure(plan)

        trials = make_study(tmp_path / "run").run(one_by_one(fewer), 1)
        assert [trial.state for trial in trials] == ["failed", "complete"]

    def test_ten_in_a_row_end_the_search(self, tmp_path):
        study = make_study(tmp_path / "run")
        recorder = Recorder()
        with pytest.raises(StudyError, match=r"10 trials in a row failed.*broke badly") as caught:
            study.run(failing(set(range(2, 100))), 50, recorder)
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert len(study.trials) == 2 + MAX_FAILURES
        assert recorder.of(SearchFinished)[0].reason == "failed"
        assert len(json.loads(study.folder.front_path.read_text())) == len(study.front) > 0
        study.run(evaluate, 4)  # once the cause is mended, the run goes on
        assert study.completed == 4

    def test_nine_in_a_row_do_not(self, tmp_path):
        broken = set(range(1, 10)) | set(range(11, 20))
        assert len(make_study(tmp_path / "run").run(failing(broken), 3)) == 3 + len(broken)


class TestInterruption:
    @pytest.mark.parametrize(
        "error",
        [KeyboardInterrupt(), SystemExit(3), RuntimeError("a library says: KeyboardInterrupt: ")],
    )
    def test_loses_nothing_and_tries_the_plan_again(self, tmp_path, uninterrupted, error):
        study = make_study(tmp_path / "run")
        recorder = Recorder()
        with pytest.raises(type(error)):
            study.run(failing({5}, error), N_TRIALS, recorder)
        assert plans_of(study.trials) == uninterrupted[:5]
        (cut,) = [trial for trial in study.trials if trial.state == "failed"]
        assert (cut.failure, cut.plan) == ("interrupted", uninterrupted[5])
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        assert recorder.of(SearchFinished) == recorder.events[-1:]
        assert recorder.events[-1].reason == reason
        assert plans_of(study.run(evaluate, N_TRIALS)) == uninterrupted

    def test_a_plan_that_interrupts_twice_is_given_up(self, tmp_path, uninterrupted):
        study = make_study(tmp_path / "run")
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                study.run(failing({2 - study.completed}, KeyboardInterrupt()), N_TRIALS)
        plans = plans_of(study.run(evaluate, N_TRIALS))
        assert plans[:2] == uninterrupted[:2]
        assert plans[2] != uninterrupted[2]

    def test_interruptions_are_not_failures(self, tmp_path):
        study = make_study(tmp_path / "run")
        for _ in range(MAX_FAILURES + 1):
            with pytest.raises(KeyboardInterrupt):
                study.run(failing({0}, KeyboardInterrupt()), 2)
        assert len(complete(study.run(evaluate, 2))) == 2

    @pytest.mark.parametrize("fatal", [0, 3, N_STARTUP + 1])
    def test_killed_in_the_middle_of_a_trial(self, tmp_path, uninterrupted, fatal):
        path = tmp_path / "run"
        arguments = ["kill", str(path), str(N_TRIALS), str(fatal)]
        ended = subprocess.run([*PROGRAM, *arguments], check=False, capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        before = RunFolder(path).read_trials()
        assert plans_of(before) == uninterrupted[:fatal]

        trials = make_study(path).run(evaluate, N_TRIALS)
        assert plans_of(trials) == uninterrupted
        assert trials[:fatal] == before  # scores and times as they were
        assert [trial.failure for trial in trials if trial.state == "failed"] == ["interrupted"]

    def test_killed_while_writing_at_any_byte(self, tmp_path, uninterrupted):
        """At most one trial's work is lost, wherever the journal was cut off."""
        whole = tmp_path / "whole"
        make_study(whole).run(evaluate, 2)
        journal = RunFolder(whole).journal_path.read_bytes()
        # After every line, within it, and just before its end.
        ends = [index + 1 for index, byte in enumerate(journal) if byte == ord("\n")]
        for place in [0, *ends, *(end - 1 for end in ends[::3]), *(end - 40 for end in ends[1::3])]:
            run = RunFolder(tmp_path / f"cut-{place}")
            run.path.mkdir()
            run.journal_path.write_bytes(journal[:place])
            known = complete(run.read_trials())
            trials = make_study(run).run(evaluate, 3)
            assert plans_of(trials) == uninterrupted[:3]
            assert complete(trials)[: len(known)] == known
            assert len(trials) <= 4

    def test_a_record_without_its_end_is_not_lost(self, tmp_path):
        """The process was killed between the record and the line that passes it to the sampler."""
        study = make_study(tmp_path / "run")
        study.run(evaluate, 3)
        lines = study.folder.journal_path.read_bytes().splitlines(keepends=True)
        assert json.loads(lines[-1])["op_code"] == 6  # the state of the last trial
        study.folder.journal_path.write_bytes(b"".join(lines[:-1]))
        trials = make_study(tmp_path / "run").run(evaluate, 3)
        assert len(trials) == 3

    def test_zeros_at_the_end_of_the_journal(self, tmp_path):
        """Some file systems leave zeros after a power cut."""
        study = make_study(tmp_path / "run")
        study.run(evaluate, 2)
        with study.folder.journal_path.open("ab") as file:
            file.write(b"\0" * 100)
        assert len(complete(study.run(evaluate, 3))) == 3
        with study.folder.journal_path.open("ab") as file:
            file.write(b"\0" * 100 + b"\n")
        assert len(complete(study.run(evaluate, 4))) == 4

    def test_damage_in_the_middle_is_said(self, tmp_path):
        study = make_study(tmp_path / "run")
        study.run(evaluate, 2)
        lines = study.folder.journal_path.read_bytes().splitlines(keepends=True)
        lines[3] = b"{torn\n"
        study.folder.journal_path.write_bytes(b"".join(lines))
        with pytest.raises(RunError, match="damaged in line 4"):
            study.run(evaluate, 3)

    def test_trials_of_a_newer_release_are_refused(self, tmp_path):
        study = make_study(tmp_path / "run")
        study.run(evaluate, 2)
        path, newer, crc = study.folder.journal_path, b"", 0
        for line in path.read_text().splitlines():
            content = json.loads(line)
            del content["crc"]
            for record in content.get("user_attr", {}).values():
                record["schema_version"] = SCHEMA_VERSION + 1
            text, crc = with_check_value(content, crc)
            newer += text
        path.write_bytes(newer)
        with pytest.raises(RunError, match="Update Heretic"):
            study.run(evaluate, 3)
        assert path.read_bytes() == newer


class TestStartPlans:
    OUTSIDE = Plan.create(
        direction_scope="mean",
        direction_index=None,
        kernels={MLP: Kernel(4.0, 1.0, 0.5, 30.0)},
        row_normalization="pre",
    )

    def test_come_first_and_only_once(self, tmp_path, uninterrupted):
        starts = [uninterrupted[9], self.OUTSIDE, uninterrupted[9], uninterrupted[7]]
        study = make_study(tmp_path / "run", start_plans=starts)
        study.run(evaluate, 2)
        study = make_study(tmp_path / "run", start_plans=starts)
        plans = plans_of(study.run(evaluate, N_TRIALS))
        assert plans[:3] == [uninterrupted[9], self.OUTSIDE, uninterrupted[7]]
        assert len(set(plans)) == N_TRIALS

    def test_are_as_good_on_the_front_as_others(self, tmp_path):
        study = make_study(tmp_path / "run", start_plans=[self.OUTSIDE])
        trials = study.run(evaluate, 2)
        assert trials[0].scores == measure(self.OUTSIDE)
        assert trials[0] in study.front

    def test_one_outside_the_space_does_not_spoil_what_the_sampler_learns(self, tmp_path):
        study = make_study(tmp_path / "run", start_plans=[self.OUTSIDE])
        trials = study.run(evaluate, 40)
        values = [sum(trial.objectives()) for trial in trials[1:]]
        assert sum(values[-15:]) / 15 < sum(values[:N_STARTUP]) / N_STARTUP

    def test_an_interrupted_one_is_tried_again(self, tmp_path):
        study = make_study(tmp_path / "run", start_plans=[self.OUTSIDE])
        with pytest.raises(KeyboardInterrupt):
            study.run(failing({0}, KeyboardInterrupt()), 2)
        assert plans_of(study.run(evaluate, 2))[0] == self.OUTSIDE

    def test_a_failed_one_is_not(self, tmp_path):
        study = make_study(tmp_path / "run", start_plans=[self.OUTSIDE])
        trials = study.run(failing({0}), 2)
        assert [trial.plan for trial in trials].count(self.OUTSIDE) == 1


class TestFiles:
    def test_front_is_written_after_every_trial(self, tmp_path):
        study = make_study(tmp_path / "run")
        seen = []

        class Reader(Recorder):
            def emit(self, event):
                if isinstance(event, TrialFinished):
                    rows = json.loads(study.folder.front_path.read_text())
                    named = zip(event.front, names_by_row(event.front), strict=True)
                    assert rows == [{**t.to_dict(), "names": list(names)} for t, names in named]
                    seen.append(rows)

        study.run(failing({2}), 5, Reader())
        assert len(seen) == 6
        assert set(seen[-1][0]) == {"trial", "scores", "plan", "names"}
        assert "fewest" in seen[-1][0]["names"]
        assert study.front == front(study.trials)

    def test_trials_that_end_together_wait_for_the_disk_once(self, tmp_path, monkeypatch):
        study = make_study(tmp_path / "run")
        journal, syncs, fsync = study.folder.journal_path, [0], os.fsync

        def counting(descriptor: int) -> None:
            syncs[0] += os.fstat(descriptor).st_ino == journal.stat().st_ino
            fsync(descriptor)

        class Together:
            at_once, places, in_batches = 1, 3, True

            def hand_in(self, batch):
                self.plans = batch

            def take(self):
                syncs[0] = 0
                return [Trial(number, plan, evaluate([plan])[0]) for number, plan in self.plans]

        class Reader(Recorder):
            def emit(self, event):
                if isinstance(event, TrialFinished):
                    kept.append((syncs[0], len(event.front), len(study.folder.read_trials())))

        kept: list[tuple[int, int, int]] = []
        monkeypatch.setattr(os, "fsync", counting)
        study.run(Together(), 6, Reader())
        assert [waits for waits, _, _ in kept] == [1] * 6
        assert [known for _, _, known in kept] == [3] * 3 + [6] * 3
        assert complete(study.trials) == study.trials

    def test_is_there_before_the_first_trial(self, tmp_path):
        study = make_study(tmp_path / "run")
        with pytest.raises(KeyboardInterrupt):
            study.run(failing({0}, KeyboardInterrupt()), 1)
        assert json.loads(study.folder.front_path.read_text()) == []

    def test_a_run_has_one_process(self, tmp_path):
        arguments = ["hold", str(tmp_path / "run")]
        with subprocess.Popen(
            [*PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(RunError, match="Another process"):
                make_study(tmp_path / "run").run(evaluate, 1)
            holder.kill()  # the lock ends with its holder, even if that is killed
        assert len(make_study(tmp_path / "run").run(evaluate, 1)) == 1

    def test_a_caller_may_hold_the_lock(self, tmp_path):
        study = make_study(tmp_path / "run")
        with study.folder.lock():
            assert len(study.run(evaluate, 1)) == 1
            assert study.folder.is_locked
        assert not study.folder.is_locked

    def test_leaves_no_other_files(self, tmp_path):
        run = tmp_path / "run"
        run.mkdir()
        (run / ".front.json.1.tmp").write_text("left by a killed process")
        make_study(run).run(evaluate, 2)
        assert {path.name for path in run.iterdir()} == {"front.json", "run.lock", "trials.journal"}

    def test_a_full_disk_is_said(self, tmp_path, monkeypatch):
        study = make_study(tmp_path / "run")
        study.run(evaluate, 1)
        before = study.folder.journal_path.read_bytes()
        write = os.write

        def full(descriptor, data):
            """Half a line still fits."""
            if len(data) < 50:
                raise OSError(28, "No space left on device")
            return write(descriptor, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(RunError, match="No space left on device"):
            study.run(evaluate, 2)
        assert study.folder.journal_path.read_bytes() == before
        monkeypatch.undo()
        assert len(study.run(evaluate, 2)) == 2


class TestEvents:
    def test_in_order(self, tmp_path):
        baseline = measure(TestStartPlans.OUTSIDE)
        study = make_study(tmp_path / "run")
        study.run(evaluate, 1)
        recorder = Recorder()
        study.run(failing({1}), 3, recorder, baseline=baseline)
        kinds = [type(event).__name__ for event in recorder.events]
        assert kinds == ["SearchStarted", *["TrialStarted", "TrialFinished"] * 3, "SearchFinished"]
        assert recorder.events[0] == SearchStarted(1, 3, baseline)
        assert [event.number for event in recorder.of(TrialStarted)] == [1, 2, 3]
        finished = recorder.of(TrialFinished)
        assert [event.completed for event in finished] == [2, 2, 3]
        assert finished[0].remaining > 0
        assert finished[-1].remaining == 0
        assert (recorder.events[-1].reason, recorder.events[-1].completed) == ("done", 3)

    def test_nothing_is_left_to_do(self, tmp_path):
        study = make_study(tmp_path / "run")
        study.run(evaluate, 2)
        recorder = Recorder()
        study.run(failing({0}), 2, recorder)
        assert [type(event) for event in recorder.events] == [SearchStarted, SearchFinished]

    def test_nothing_strays_onto_the_terminal(self, tmp_path):
        code = (
            "import sys; from pathlib import Path; from tests.support.search_case import *\n"
            "def broken(plans, calls=[]):\n"
            "    calls.append(1)\n"
            "    if len(calls) == 3: raise RuntimeError('no')\n"
            "    return evaluate(plans)\n"
            "make_study(Path(sys.argv[1])).run(broken, 9)"
        )
        command = [sys.executable, "-W", "always", "-c", code, str(tmp_path / "run")]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        assert (ended.stdout, ended.stderr) == ("", "")

    def test_warnings_of_the_evaluation_are_not_hidden(self, tmp_path):
        def warn(plans):
            warnings.warn("look here", UserWarning, stacklevel=1)
            return evaluate(plans)

        with pytest.warns(UserWarning, match="look here"):
            make_study(tmp_path / "run").run(warn, 1)

    def test_the_log_has_the_traceback_of_a_failure(self, tmp_path, caplog):
        make_study(tmp_path / "run").run(failing({0}), 1)
        (entry,) = [entry for entry in caplog.records if entry.name == "heretic.search.trying"]
        assert entry.exc_info is not None


def test_listing_trials_needs_no_optuna(tmp_path):
    make_study(tmp_path / "run").run(evaluate, 2)
    code = (
        "import sys; from pathlib import Path\n"
        "from heretic.runs.folder import RunFolder\n"
        "from heretic.runs.listing import list_runs\n"
        "assert len(RunFolder(Path(sys.argv[1])).read_trials()) > 0\n"
        "assert not {'optuna', 'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)
