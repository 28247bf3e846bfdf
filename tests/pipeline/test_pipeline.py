"""The whole way on a tiny model: through the command line, interrupted, killed, resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import benchmark_tasks, tiny
from transformers import AutoModelForCausalLM

from heretic import pipeline
from heretic.cli import workflow
from heretic.cli.menu import chat as chat_module
from heretic.cli.options import SettingsOptions
from heretic.errors import StudyError
from heretic.evaluator import Evaluator
from heretic.harness.store import figures_of
from heretic.main import main
from heretic.model import experts
from heretic.pipeline.recorded import run_settings
from heretic.records import Trial, front
from heretic.runs.folder import RunFolder
from heretic.runs.listing import list_runs

CONFIG = """
model = "model"
n_trials = {n_trials}
n_startup_trials = 3
search = "tpe"
seed = 7
dtypes = ["float32"]
max_response_length = 6
response_prefix = ""
refusal_markers = ["`", "%"]
{extra}
"""
SLOW_SCORER = """
import os
import time
from heretic.scorers.keyword import KeywordRefusals

class Slow(KeywordRefusals):
    def measure(self, outputs, baseline):
        time.sleep(float(os.environ.get("SECONDS_A_TRIAL", "0")))
        return super().measure(outputs, baseline)
"""

HELLO = {"role": "user", "content": "Hello"}


def never(*_: object, **__: object) -> Any:
    """Replaces work that must not be done."""
    raise AssertionError("no work for nothing")


SCORERS = """
scorers = [{ plugin = "keyword", name = "refusals" }, { plugin = "kl_divergence" }]
"""


def write_config(place: Path, n_trials: int = 4, extra: str = SCORERS) -> None:
    text = CONFIG.format(n_trials=n_trials, extra=extra) + tiny.PROMPT_TABLES
    (place / "config.toml").write_text(text)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("template")
    tiny.folder(place / "model")
    return place


@pytest.fixture
def place(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model, prompts and a configuration."""
    lay_out(tmp_path, template)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lay_out(place: Path, template: Path) -> None:
    (place / "model").symlink_to(template / "model")
    tiny.prompt_files(place)
    write_config(place)


@pytest.fixture(scope="module")
def checkpoints(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a search leaves, made once."""
    place = tmp_path_factory.mktemp("searched")
    lay_out(place, template)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main([]) == 0
    return place / "checkpoints"


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task, the same for all tests: the harness takes seconds to index its own."""
    folder = tmp_path_factory.mktemp("benchmark") / "tasks"
    folder.mkdir()
    benchmark_tasks.choice_task(folder, "tiny_own")
    return folder


def the_run(place: Path) -> RunFolder:
    (run,) = list_runs(place / "checkpoints")
    return RunFolder(run.path)


def start(place: Path, arguments: Sequence[str] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "heretic", *arguments],
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "SECONDS_A_TRIAL": "0.5"},
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} never appeared")


class TestRun:
    def test_headless_search_shows_the_front_and_how_to_go_on(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([]) == 0
        out = capsys.readouterr().out
        assert "To go on from here" in out
        assert "--trial-index 0" in out
        assert "\x1b" not in out
        folder = the_run(place)
        rows = json.loads(folder.front_path.read_text())
        assert all(set(row) == {"trial", "names", "scores", "plan"} for row in rows)
        assert all(set(row["scores"]) == {"refusals", "kl_divergence"} for row in rows)
        assert len(folder.read_trials()) == 4
        assert "Trial 3" in folder.log_path.read_text()

    def test_a_time_limit_ends_the_search_and_the_run_goes_on_without_it(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        choice = ["--trial-index", "fewest", "--model-action", "save", "--save-directory", "edited"]
        limit = ["--time-limit", "0.001s"]
        assert main(["model", *limit, *choice, "--export-strategy", "merge"]) == 0
        assert "Time limit of 0s reached: 1 of 4 trials" in capsys.readouterr().out
        assert (place / "edited" / "reproduce.json").is_file()
        assert len(the_run(place).read_trials()) == 1
        assert main(["--n-additional-trials", "2", *limit, "--n-trials", "1"]) == 0
        assert len(the_run(place).read_trials()) == 2
        assert main([]) == 0
        assert len(the_run(place).read_trials()) == 4

    def test_settings_alone_do_everything(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        choice = ["--trial-index", "0", "--model-action", "save", "--save-directory", "edited"]
        assert main(["model", *choice, "--export-strategy", "merge"]) == 0
        assert "from disk" in capsys.readouterr().out
        edited = AutoModelForCausalLM.from_pretrained(place / "edited")
        original = AutoModelForCausalLM.from_pretrained(place / "model")
        changed = [
            name
            for name, value in edited.state_dict().items()
            if not torch.equal(value, original.state_dict()[name])
        ]
        assert changed
        assert all(name.endswith(("o_proj.weight", "down_proj.weight")) for name in changed)
        for name in ("README.md", "abliteration_params.json", "reproduce.json", "tokenizer.json"):
            assert (place / "edited" / name).is_file()
        # The same weights once more, from the reproduction file.
        assert main(["reproduce", "edited", "--save-directory", "again"]) == 0
        again = (place / "again" / "model.safetensors").read_bytes()
        assert again == (place / "edited" / "model.safetensors").read_bytes()

    def test_a_run_that_is_there_is_asked_about_and_continued(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main([])
        before = the_run(place).read_trials()
        assert main([]) == 0
        assert "already exists" in capsys.readouterr().out
        assert main(["--checkpoint-action", "continue", "--n-trials", "6"]) == 0
        after = the_run(place).read_trials()
        assert after[:4] == before
        assert len(after) == 6
        assert main(["--checkpoint-action", "restart"]) == 0
        assert [t.plan for t in the_run(place).read_trials()] == [t.plan for t in before]
        capsys.readouterr()
        assert main(["--checkpoint-action", "quit", "--n-trials", "9"]) == 0
        assert f"{the_run(place).path.name} is left as it is." in capsys.readouterr().out
        assert len(the_run(place).read_trials()) == len(before)

    def test_without_a_seed_a_run_is_found_again(self, place: Path) -> None:
        text = (place / "config.toml").read_text().replace("seed = 7\n", "")
        (place / "config.toml").write_text(text)
        main(["--n-trials", "2"])
        main(["--n-trials", "3", "--checkpoint-action", "continue"])
        assert len(the_run(place).read_trials()) == 3

    def test_changed_prompts_are_another_run(self, place: Path) -> None:
        main(["--n-trials", "1"])
        (place / "bad.txt").write_text("\n".join([*tiny.BAD_PROMPTS[:-1], "Something else?"]))
        main(["--n-trials", "1"])
        assert len(list_runs(place / "checkpoints")) == 2

    def test_the_batch_size_that_memory_left_is_known_after_the_trial(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        evaluate, seen = Evaluator.evaluate, list[int]()

        def watched(self: Evaluator, *arguments: Any) -> Any:
            manifest = the_run(place).read_manifest()
            assert manifest is not None
            seen.append(manifest.found["batch_size"])
            if len(seen) == 2:
                self.model.notify_halved(5)
                raise RuntimeError("on purpose")
            return evaluate(self, *arguments)

        monkeypatch.setattr(Evaluator, "evaluate", watched)
        assert main([]) == 0
        assert [size == 5 for size in seen] == [False, False, True, True, True]

    def test_start_plans_come_first(self, place: Path) -> None:
        main(["--n-trials", "2"])
        plans = the_run(place).front_path.read_text()
        (place / "plans.json").write_text(plans)
        wanted = json.loads(plans)[0]["plan"]
        main(["--n-trials", "1", "--seed", "9", "--start-plans", "plans.json"])
        runs = [RunFolder(run.path) for run in list_runs(place / "checkpoints")]
        (other,) = [folder for folder in runs if len(folder.read_trials()) == 1]
        assert other.read_trials()[0].plan.to_dict() == wanted

    def test_a_trial_that_fails_does_not_end_the_study(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (place / "moody.py").write_text(
            "from heretic.scorers.kl_divergence import KLDivergence\n"
            "calls = iter(range(99))\n"
            "class Moody(KLDivergence):\n"
            "    def measure(self, outputs, baseline):\n"
            "        if next(calls) == 2:\n"
            "            raise RuntimeError('on purpose')\n"
            "        return super().measure(outputs, baseline)\n"
        )
        plugin = json.dumps([{"plugin": "moody.py:Moody", "name": "kl_divergence"}])
        assert main(["--scorers", plugin]) == 0
        trials = the_run(place).read_trials()
        assert sum(trial.state == "complete" for trial in trials) == 4
        (failed,) = [trial for trial in trials if trial.state == "failed"]
        assert failed.failure is not None
        assert "on purpose" in failed.failure
        assert "Traceback" in the_run(place).log_path.read_text()

    def test_ten_failures_in_a_row_end_the_search_with_2(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (place / "broken.py").write_text(
            "from heretic.scorers.kl_divergence import KLDivergence\n"
            "class Broken(KLDivergence):\n"
            "    def measure(self, outputs, baseline):\n"
            "        if outputs is not baseline:\n"
            "            raise RuntimeError('on purpose')\n"
            "        return super().measure(outputs, baseline)\n"
        )
        plugin = json.dumps([{"plugin": "broken.py:Broken", "name": "kl_divergence"}])
        assert main(["--scorers", plugin]) == 2
        assert "on purpose" in capsys.readouterr().err

    def test_a_variant_that_experts_do_not_take_is_refused_before_any_work(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tiny.folder(place / "experts", "mixtral", num_local_experts=4)
        monkeypatch.setattr(experts, "EXPERT_ROUTING", ())  # a block of an unknown type
        monkeypatch.setattr(pipeline, "choose_prefix", never)
        assert main(["--model", "experts", "--row-normalization", "full"]) == 2
        assert "row_normalization to none" in capsys.readouterr().err

    def test_the_front_is_shown_before_the_search_gives_up(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["--n-trials", "2"])
        capsys.readouterr()

        def give_up(*_: object) -> None:
            raise StudyError("Ten trials in a row failed.")

        monkeypatch.setattr(pipeline, "search", give_up)
        assert main(["--n-trials", "3", "--checkpoint-action", "continue"]) == 2
        assert "The front so far" in capsys.readouterr().out

    def test_the_front_is_shown_when_more_trials_are_interrupted(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        real = pipeline.search

        def search(
            session: pipeline.Session, n_trials: int | None = None, *, timed: bool = True
        ) -> list[Trial]:
            if n_trials is not None:
                raise KeyboardInterrupt
            return real(session)

        monkeypatch.setattr(pipeline, "search", search)
        assert main(["--n-trials", "2", "--n-additional-trials", "2"]) == 130
        assert "The front so far" in capsys.readouterr().out
        assert (the_run(place).path / "front.png").is_file()


class TestInterruption:
    """Whatever stops a run, at most the trial in hand is lost."""

    @pytest.fixture
    def slow(self, place: Path) -> Path:
        """Trials take long in the processes that are stopped, and only there."""
        (place / "slow.py").write_text(SLOW_SCORER)
        extra = 'scorers = [{plugin = "slow.py:Slow", name = "refusals"}, '
        extra += '{plugin = "heretic.scorers.kl_divergence:KLDivergence", name = "kl_divergence"}]'
        write_config(place, n_trials=8, extra=extra)
        return place

    OWN = ("--config", "config.toml")
    """Its scorer is code of its own, so the file has to be named."""

    def reference(self, place: Path) -> list[Any]:
        main([*self.OWN, "--study-checkpoint-dir", "reference"])
        (run,) = list_runs(place / "reference")
        return [trial.plan for trial in RunFolder(run.path).read_trials()]

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
    def test_stopped_in_a_trial_then_resumed(self, slow: Path, how: signal.Signals) -> None:
        process = start(slow, self.OWN)
        wait_for(process, "trial 2")
        time.sleep(0.1)  # into trial 3
        process.send_signal(how)
        rest, _ = process.communicate(timeout=300)
        assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
        if how == signal.SIGINT:
            assert "The front so far" in rest
            assert "--checkpoint-action continue" in rest
        kept = [t for t in the_run(slow).read_trials() if t.state == "complete"]
        assert len(kept) >= 3
        assert json.loads(the_run(slow).front_path.read_text())
        assert main([*self.OWN, "--checkpoint-action", "continue"]) == 0
        complete = [t for t in the_run(slow).read_trials() if t.state == "complete"]
        assert len(complete) == 8
        assert complete[: len(kept)] == kept
        # The search went on with the plans that an uninterrupted one tries.
        assert [trial.plan for trial in complete] == self.reference(slow)

    def test_two_processes_do_not_share_a_run(
        self, slow: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        process = start(slow, self.OWN)
        try:
            wait_for(process, "trial 0")
            assert main([*self.OWN, "--checkpoint-action", "continue"]) == 2
            assert "Another process" in capsys.readouterr().err
        finally:
            process.kill()
            process.communicate(timeout=300)


class TestOtherCommands:
    @pytest.fixture
    def searched(self, place: Path, checkpoints: Path) -> Path:
        """A working directory in which that search has been."""
        shutil.copytree(checkpoints, place / "checkpoints")
        return place

    def test_apply_makes_the_trials_model_without_a_search(
        self, searched: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        front = the_run(searched).front_path
        save = ["--save-directory", "applied"]
        assert main(["apply", "model", str(front), "--index", "0", *save]) == 0
        chosen = ["--trial-index", "0", "--model-action", "save", "--export-strategy", "merge"]
        run = str(front.parent)
        assert main(["export", run, *chosen, "--save-directory", "exported"]) == 0
        applied = (searched / "applied" / "model.safetensors").read_bytes()
        assert applied == (searched / "exported" / "model.safetensors").read_bytes()

    def test_apply_computes_directions_where_there_are_none(self, searched: Path) -> None:
        plan = json.loads(the_run(searched).front_path.read_text())[0]["plan"]
        (searched / "plan.json").write_text(json.dumps(plan))
        run = the_run(searched).path
        assert main(["apply", "model", "plan.json", "--save-directory", "a"]) == 0
        kept = ["--save-directory", "b", "--run", str(run)]
        assert main(["apply", "model", "plan.json", *kept]) == 0
        a, b = (searched / name / "model.safetensors" for name in ("a", "b"))
        assert a.read_bytes() == b.read_bytes()

    def test_evaluate_as_json(self, searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
        plan = str(the_run(searched).front_path)
        main(["apply", "model", plan, "--index", "0", "--save-directory", "edited"])
        capsys.readouterr()
        assert main(["evaluate", "edited", "--against", "model", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["baseline"]["kl_divergence"]["value"] == 0.0
        recorded = json.loads(Path(plan).read_text())[0]["scores"]
        measured = result["scores"]["kl_divergence"]["value"]
        assert measured == pytest.approx(recorded["kl_divergence"], rel=1e-2, abs=1e-6)

    def test_evaluate_refuses_another_vocabulary(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tiny.folder(place / "other")
        tokenizer = tiny.tokenizer()
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(place / "other")
        assert main(["evaluate", "other", "--against", "model"]) == 2
        assert "different vocabularies" in capsys.readouterr().err

    def test_chat_with_a_trial_without_a_terminal(self, searched: Path) -> None:
        run = str(the_run(searched).path)
        done = subprocess.run(
            [sys.executable, "-m", "heretic", "chat", run, "--trial-index", "0"],
            cwd=searched,
            input="/compare\nHi\nexit\n",
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "edited:" in done.stdout
        assert "original:" in done.stdout

    def test_a_trial_is_talked_to_without_prompts_and_scores(
        self, searched: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("good.txt", "bad.txt"):
            (searched / name).unlink()
        monkeypatch.setattr(Evaluator, "__init__", never)
        monkeypatch.setattr(chat_module, "chat", lambda *_, **__: None)
        monkeypatch.setattr(workflow, "chat", lambda speak, **_: list(speak([HELLO])))
        assert main(["chat", str(the_run(searched).path), "--trial-index", "0"]) == 0

    def test_an_adapter_is_talked_to_through_peft(
        self, searched: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        chosen = ["--trial-index", "0", "--model-action", "save", "--export-strategy", "adapter"]
        run = str(the_run(searched).path)
        assert main(["export", run, *chosen, "--save-directory", "adapter"]) == 0
        capfd.readouterr()
        told: list[str] = []
        monkeypatch.setattr(
            chat_module, "chat", lambda speak, **_: told.append("".join(speak([HELLO])))
        )
        assert main(["chat", "adapter"]) == 0
        assert "LOAD REPORT" not in "".join(capfd.readouterr())
        monkeypatch.setattr(
            workflow, "chat", lambda speak, **_: told.append("".join(speak([HELLO])))
        )
        assert main(["chat", run, "--trial-index", "0"]) == 0
        assert told[0] == told[1]

    def test_options_of_another_run_are_refused(
        self, searched: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = str(the_run(searched).path)
        (searched / "other.toml").write_text("max_response_length = 9\n")
        for command in ("export", "chat"):
            for options in (["--max-response-length", "9"], ["--config", "other.toml"]):
                assert main([command, run, *options]) == 2
                assert "another run" in capsys.readouterr().err

    def test_settings_beside_a_run_are_those_of_its_user(
        self, searched: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest = the_run(searched).read_manifest()
        assert manifest is not None
        evil = replace(manifest, settings={**manifest.settings, "trust_remote_code": True})
        (searched / "own.toml").write_text('export_strategy = "adapter"\n')
        monkeypatch.setenv("HERETIC_SAVE_DIRECTORY", "from-environment")
        settings = run_settings(evil, SettingsOptions(config=Path("own.toml")).layers())
        assert settings.trust_remote_code is False
        assert settings.export_strategy == "adapter"
        assert settings.save_directory == Path("from-environment")
        assert settings.max_response_length == 6
        trusted = SettingsOptions(overrides={"trust_remote_code": True})
        assert run_settings(evil, trusted.layers()).trust_remote_code is True

    def test_a_model_that_has_moved_is_found_and_another_is_not(
        self, searched: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        manifest = the_run(searched).read_manifest()
        assert manifest is not None
        (searched / "model").rename(searched / "moved")
        moved = SettingsOptions(overrides={"model": "moved"})
        assert run_settings(manifest, moved.layers()).model == "moved"
        tiny.folder(searched / "model", seed=5)
        assert main(["export", str(the_run(searched).path)]) == 2
        assert "not the model that was searched" in capsys.readouterr().err

    def test_changed_prompts_are_said(
        self, searched: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (searched / "bad.txt").write_text("\n".join([*tiny.BAD_PROMPTS[:-1], "Something else?"]))
        assert main(["export", str(the_run(searched).path)]) == 2
        assert "The prompts have changed" in capsys.readouterr().err

    def test_a_runs_own_plugins_need_consent(
        self, searched: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (searched / "evil.py").write_text("raise SystemExit('ran')\n")
        folder = the_run(searched)
        manifest = folder.read_manifest()
        assert manifest is not None
        scorers = [{"plugin": "evil.py:Evil", "optimization": "minimize", "name": "evil"}]
        folder.write_manifest(replace(manifest, settings={**manifest.settings, "scorers": scorers}))
        assert main(["export", str(folder.path)]) == 2
        assert "--trust-plugins" in capsys.readouterr().err

    @pytest.fixture
    def own_task(self, searched: Path, own_tasks: Path) -> str:
        """The name of a task in the folder `tasks`."""
        (searched / "tasks").symlink_to(own_tasks)
        return "tiny_own"

    def test_benchmarks_of_a_trial_beside_the_original(
        self, searched: Path, own_task: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = the_run(searched)
        chosen = ["--benchmarks", own_task, "--benchmark-path", "tasks"]
        assert main(["benchmark", str(run.path), *chosen]) == 0
        said = capsys.readouterr().out
        assert "acc_norm" in said
        assert "95%" in said  # the rest of the heading may stand in the next line
        assert "The interval is of the difference" in " ".join(said.split())
        names = {path.name for path in (run.path / "benchmarks").iterdir()}
        assert "original.json" in names
        assert len(names) == 2
        save = ["--model-action", "save", "--save-directory", "out", "--export-strategy", "merge"]
        assert main(["export", str(run.path), "--trial-index", "0", *save]) == 0
        card = (searched / "out" / "README.md").read_text(encoding="utf-8")
        assert "| tiny_own | acc_norm | " in card
        assert "lm-evaluation-harness" in card

    def test_a_card_has_no_figures_of_parts_of_tasks_or_of_other_trials(
        self, searched: Path, own_task: str
    ) -> None:
        run = the_run(searched)
        trial = front(run.read_trials())[0]
        own = ["--benchmarks", own_task, "--benchmark-path", "tasks"]
        assert main(["benchmark", str(run.path), *own, "--benchmark-limit", "2"]) == 0
        assert figures_of(run.path, trial) == ()
        assert main(["benchmark", str(run.path), *own, "--no-benchmark-original"]) == 0
        assert figures_of(run.path, trial) == ()
        assert main(["benchmark", str(run.path), *own]) == 0
        rows = figures_of(run.path, trial)
        assert {row.task for row in rows} == {own_task}
        assert all(row.difference is not None for row in rows)
        assert figures_of(run.path, replace(trial, number=trial.number + 1)) == ()
        assert figures_of(run.path, replace(trial, plan=replace(trial.plan, kernels=()))) == ()

    def test_a_run_does_not_say_where_benchmarks_code_lies(
        self, searched: Path, own_task: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = the_run(searched)
        manifest = folder.read_manifest()
        assert manifest is not None
        settings = {**manifest.settings, "benchmark_path": str(searched / "tasks")}
        folder.write_manifest(replace(manifest, settings=settings))
        assert main(["benchmark", str(folder.path), "--benchmarks", own_task]) == 2
        assert "no task 'tiny_own'" in capsys.readouterr().err

    def test_residual_geometry_is_printed(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--n-trials", "1", "--print-residual-geometry"]) == 0
        assert "Residual geometry" in capsys.readouterr().out


class TestBeforeTheWork:
    """Errors that would stop a run at its end are found at its beginning."""

    @pytest.fixture(autouse=True)
    def _no_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pipeline, "load_prompts", never)
        monkeypatch.setattr(pipeline, "load_model", never)

    def test_a_destination_that_is_taken(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (place / "taken").mkdir()
        (place / "taken" / "thesis.txt").write_text("x")
        assert main(["--save-directory", "taken"]) == 2
        assert "not empty" in capsys.readouterr().err

    def test_too_little_disk(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        usage = shutil.disk_usage(place)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert main(["--save-directory", "new"]) == 2
        assert "are free there" in capsys.readouterr().err

    def test_a_benchmark_that_does_not_exist(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--model-action", "benchmark", "--benchmarks", "hellaswga"]) == 2
        assert "Nearest: hellaswag" in capsys.readouterr().err

    def test_a_missing_package(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--plot-residuals", "--residual-plot-style", "no-such-style"]) == 2
        assert "pacmap" in (said := capsys.readouterr().err) or "no-such-style" in said
