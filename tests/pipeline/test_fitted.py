"""A search among fits: it goes on after a kill, and whoever uses a plan later has its vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support import export_case, tiny
from tests.support.search_case import Recorder

from heretic import pipeline
from heretic.config import Settings
from heretic.errors import RunError, SettingsError, StudyError
from heretic.events import Silent
from heretic.export.reproduce import reproduce
from heretic.model.fits import read_fits
from heretic.pipeline.single import apply_plan
from heretic.records import Plan
from heretic.records.plan import FITS
from heretic.runs.folder import RunFolder
from heretic.search import beginning
from heretic.search.beginning import PROGRESS
from heretic.search.fitting.fit import Fitting
from heretic.search.fitting.progress import FitOptions

SMALL = FitOptions(
    trade_offs=(0.5, 2.0),
    steps=1,
    good=2,
    pushed=2,
    kept_tokens=2,
    look_tokens=24,
    rate=1.0,
    lowest=0.0,
    gone=0.0,
    tried=0,  # a teacher from the beginning
)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(beginning, "FIT", SMALL)
    return export_case.settings(
        tiny.folder(tmp_path / "Tiny-Base"),
        **export_case.prompt_files(tmp_path),
        search="fitted",
        n_trials=4,
        study_checkpoint_dir=str(tmp_path / "runs"),
    )


def session_of(settings: Settings, recorder: Recorder | None = None) -> pipeline.Session:
    reporter = recorder or Recorder()
    prompts = pipeline.load_prompts(settings, reporter)
    folder, seed = pipeline.open_folder(settings, prompts)
    with folder.lock():
        return pipeline.prepare(settings, prompts, folder, seed, reporter)


def fit_files(folder: Path) -> list[Path]:
    return sorted((folder / FITS).glob("fit-*.safetensors"))


def never(*_: Any, **__: Any) -> Sequence[Plan]:
    raise AssertionError("it is not fitted twice")


def test_a_run_goes_on_with_its_fit(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = session_of(settings)
    [file] = fit_files(first.study.folder.path)
    pipeline.search(first, 3)
    trials = first.study.trials
    digest = file.stem.removeprefix("fit-")
    assert [trial.plan.fits for trial in trials] == [(digest,), (digest,), ()]
    assert [trial.state for trial in trials] == ["complete"] * 3
    monkeypatch.setattr(beginning, "Fitting", never)
    second = session_of(settings)
    pipeline.search(second)
    again = second.study.trials
    assert again[:3] == trials
    plans = [trial.plan for trial in again]
    assert plans[0].kernels[0][1].figures() == (1.0, 1.0)  # the end of the path comes first
    [scores] = second.evaluator.evaluate(plans[:1])
    assert [score.value for score in scores] == [score.value for score in trials[0].scores]


def test_killed_between_two_rounds_it_goes_on_after_the_first(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = session_of(settings.replaced(study_checkpoint_dir=tmp_path / "whole"))
    [wanted] = fit_files(whole.study.folder.path)
    write = RunFolder.write_file

    def killed(self: RunFolder, name: str, content: str | bytes) -> None:
        write(self, name, content)
        written.append(name)
        if written.count(PROGRESS) == 2:  # the first time there is a teacher, and no round
            raise KeyboardInterrupt

    written: list[str] = []

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_file", killed)
        with pytest.raises(KeyboardInterrupt):
            session_of(settings)
    recorder = Recorder()
    session = session_of(settings, recorder)
    assert "The fit goes on after round 1" in recorder.notices("info")
    [found] = fit_files(session.study.folder.path)
    assert found.read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"{}")])
def test_vectors_that_are_not_the_runs_are_refused(
    settings: Settings, damage: Callable[[Path], object]
) -> None:
    session = session_of(settings)
    pipeline.search(session, 1)
    damage(fit_files(session.study.folder.path)[0])
    with pytest.raises(RunError, match=r"fit-[0-9a-f]{32}\.safetensors"):
        session_of(settings)


@pytest.mark.parametrize("strategy", ["merge", "adapter"])
def test_an_export_has_all_that_is_needed_to_make_it_again(
    settings: Settings, strategy: str, tmp_path: Path
) -> None:
    session = session_of(settings)
    with session.study.folder.lock():
        pipeline.search(session)
        trial = next(trial for trial in session.study.trials if trial.plan.fits)
        pipeline.export_trial(session, trial, tmp_path / "first", strategy)
    [file] = fit_files(tmp_path / "first")
    assert file.read_bytes() == fit_files(session.study.folder.path)[0].read_bytes()
    assert f"{FITS}/{file.name}" in (tmp_path / "first" / "SHA256SUMS").read_text()
    assert f"{FITS}/{file.name}" in (tmp_path / "first" / "README.md").read_text()
    again = partial(reproduce, prepare=pipeline.prepare_directions, reporter=Silent())
    outcome = again(tmp_path / "first", tmp_path / "second")
    assert outcome.identical, outcome.summary()
    file.unlink()
    with pytest.raises(RunError, match="needs the vectors of a fit"):
        again(tmp_path / "first", tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_a_plan_is_applied_with_the_fit_beside_it(settings: Settings, tmp_path: Path) -> None:
    session = session_of(settings)
    pipeline.search(session)
    folder = session.study.folder.path
    plan = next(trial.plan for trial in session.study.trials if trial.plan.fits)
    scores = apply_plan(
        settings,
        plan,
        tmp_path / "applied",
        "merge",
        Silent(),
        fits=read_fits([plan], folder),
        run=session.study.folder,
    )
    wanted = next(trial for trial in session.study.trials if trial.plan == plan)
    assert [score.display for score in scores] == [score.display for score in wanted.scores]
    assert len(fit_files(tmp_path / "applied")) == 1


def test_a_time_limit_ends_it_after_a_round(settings: Settings) -> None:
    recorder = Recorder()
    session = session_of(settings.replaced(time_limit="0.01s"), recorder)
    assert "The time limit ends the fit after round 1" in recorder.notices("info")
    on_path = [plan.kernels[0][1].figures() for plan in session.study.start_plans if plan.fits]
    assert on_path == [(0.0, 1.0)]


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no backward pass")


def test_an_error_ends_it_after_the_rounds_that_are_made(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Fitting._step

    def later(self: Fitting, *arguments: Any) -> None:
        (failing if self.progress.points else step)(self, *arguments)

    monkeypatch.setattr(Fitting, "_step", later)
    recorder = Recorder()
    session = session_of(settings, recorder)
    on_path = [plan for plan in session.study.start_plans if plan.fits]
    assert [plan.kernels[0][1].figures() for plan in on_path] == [(0.0, 1.0)]
    said = "The fit ends after round 1: RuntimeError: no backward pass"
    assert said in recorder.notices("warning")


def test_an_error_after_a_new_beginning_leaves_the_rounds_before_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "FIT", replace(SMALL, tried=1, stuck=-1.0))
    step = Fitting._step

    def later(self: Fitting, *arguments: Any) -> None:
        (failing if self.progress.alone else step)(self, *arguments)

    monkeypatch.setattr(Fitting, "_step", later)
    session = session_of(settings, recorder := Recorder())
    kinds = [bool(plan.fits) for plan in session.study.start_plans]
    assert kinds == [True, False]  # the round without a teacher, and the teacher
    assert any(
        text.startswith("The fit ends after round 1") for text in recorder.notices("warning")
    )


def test_there_is_no_new_beginning_without_time_for_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "FIT", replace(SMALL, tried=1, stuck=-1.0))
    monkeypatch.setattr(beginning, "_teacher", never)
    session = session_of(settings.replaced(time_limit="0.01s"))
    assert [bool(plan.fits) for plan in session.study.start_plans] == [True]


@pytest.mark.parametrize(("weak", "kinds"), [(-1.0, [True, True, False]), (1.0, [True, True])])
def test_a_fit_that_leaves_many_replies_has_an_ablation_beside_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, weak: float, kinds: list[bool]
) -> None:
    monkeypatch.setattr(beginning, "FIT", replace(SMALL, tried=99, weak=weak))
    first = session_of(settings)
    assert [bool(plan.fits) for plan in first.study.start_plans] == kinds
    first.study.folder.sweep_path.unlink()  # it is remembered with the fit
    monkeypatch.setattr(beginning, "_teacher", never)
    assert session_of(settings).study.start_plans == first.study.start_plans


def test_plans_that_are_gone_are_those_of_the_fit_as_it_ended(settings: Settings) -> None:
    short = settings.replaced(time_limit="0.01s")
    first = session_of(short)
    pipeline.search(first, 1)
    first.study.folder.sweep_path.unlink()
    again = session_of(short.replaced(time_limit=None))
    assert again.study.start_plans == first.study.start_plans


def test_where_it_fails_at_once_it_is_an_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fitting, "_step", failing)
    with pytest.raises(StudyError, match="The fit failed: RuntimeError: no backward pass"):
        session_of(settings)


AGREEMENT = {"plugin": "agreement", "optimization": "minimize"}


class TestAuto:
    @staticmethod
    def kinds(session: pipeline.Session) -> list[bool]:
        return [bool(plan.fits) for plan in session.study.start_plans]

    def test_a_new_run_is_fitted(self, settings: Settings) -> None:
        assert self.kinds(session_of(settings.replaced(search="auto"))) == [True, True, False]

    def test_one_that_induces_is_not(self, settings: Settings) -> None:
        wanted = [{"plugin": "refusal", "name": "refusals", "optimization": "maximize"}]
        changed = {"search": "auto", "goal": "induce", "scorers": wanted}
        session = session_of(settings.replaced(**changed))
        assert not any(self.kinds(session))

    @pytest.mark.parametrize("changed", [{"max_rank": 2}, {"scorers": [AGREEMENT]}])
    def test_nor_several_directions_nor_other_behaviours(
        self, settings: Settings, changed: dict[str, Any]
    ) -> None:
        session = session_of(settings.replaced(search="auto", **changed))
        assert session.manifest.found["search"] == "ablation"
        assert not any(self.kinds(session))

    def test_where_the_fit_fails_an_ablation_is_searched(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Fitting, "_step", failing)
        recorder = Recorder()
        session = session_of(settings.replaced(search="auto"), recorder)
        assert self.kinds(session)
        assert not any(self.kinds(session))
        [said] = [text for text in recorder.notices("warning") if "fit failed" in text]
        assert said.startswith("The fit failed, an ablation is searched: RuntimeError")

    @pytest.mark.parametrize("recorded", ["ablation", None])
    def test_a_run_keeps_what_it_began_with(
        self, settings: Settings, recorded: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Runs of earlier releases recorded nothing, and meant an ablation."""
        settings = settings.replaced(search="auto")
        with monkeypatch.context() as patched:
            patched.setattr(beginning, "AUTO", "ablation")
            patched.setattr(Fitting, "_step", failing)
            first = session_of(settings)
        pipeline.search(first, 1)
        folder = first.study.folder
        found = dict(first.manifest.found)
        assert found.pop("search") == "ablation"
        if recorded is None:
            folder.write_manifest(replace(folder.require_manifest(), found=found))
        folder.sweep_path.unlink()
        second = session_of(settings)
        assert second.study.start_plans == first.study.start_plans


def test_it_cannot_induce(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot induce"):
        export_case.settings(tmp_path, search="fitted", goal="induce")
