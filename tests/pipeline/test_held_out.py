"""The held-out split: chosen trials are scored on it, and saved documents say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support import export_case, tiny
from tests.support.data_sets import only
from tests.support.search_case import Recorder

from heretic import pipeline
from heretic.cli.workflow import saved_table
from heretic.config import Settings
from heretic.errors import StudyError
from heretic.evaluator.library import LibraryEvaluator
from heretic.events import Silent, StageFinished
from heretic.export.documents.card import model_card
from heretic.export.request import HeldOut
from heretic.pipeline import held_out
from heretic.records import ATTENTION, MLP, LayerWeights, Optimization, Plan, Score
from heretic.records.statistics import interval
from heretic.search import beginning, method

IN_USE, REST = 12, 11
MORE = [f"Tell me {count} facts about {what}." for count in (2, 3) for what in "abcdefgh"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base") / "Tiny-Base")


MakeSettings = Callable[..., Settings]


@pytest.fixture
def make(tmp_path: Path, base: Path) -> MakeSettings:
    """Settings whose prompt files have that many rows after those in use."""

    def give(good: int = REST, bad: int = REST, **values: Any) -> Settings:
        sets: dict[str, Any] = {}
        rows = {"good": [*tiny.GOOD_PROMPTS, *MORE[:good]], "bad": [*tiny.BAD_PROMPTS, *MORE[:bad]]}
        for kind, lines in rows.items():
            path = tmp_path / f"{kind}.txt"
            path.write_text("\n".join(lines), encoding="utf-8")
            sets[f"{kind}_prompts"] = {"dataset": str(path), "split": "train[:8]"}
            sets[f"{kind}_evaluation_prompts"] = {
                "dataset": str(path),
                "split": f"train[8:{IN_USE}]",
            }
        options = {"search": "tpe", "n_trials": 1, "study_checkpoint_dir": str(tmp_path / "runs")}
        return export_case.settings(base, **{**sets, **options, **values})

    return give


def loaded(settings: Settings) -> tuple[pipeline.PromptSets, str]:
    """The prompts, and what is said of them."""
    recorder = Recorder()
    sets = pipeline.load_prompts(settings, recorder)
    return sets, recorder.of(StageFinished)[-1].summary


class TestPromptSets:
    def test_are_what_follows_the_slices(self, make: MakeSettings):
        sets, said = loaded(make())
        assert sets.held_out is not None
        assert [prompt.user for prompt in sets.held_out.good] == MORE[:REST]
        assert [prompt.user for prompt in sets.held_out.bad] == MORE[:REST]
        assert said == (
            "8 good and 8 bad for directions, 4 and 4 for evaluation, 11 and 11 held out"
        )

    @pytest.mark.parametrize(("good", "bad"), [(0, 0), (REST, 9), (9, REST), (0, REST)])
    def test_too_few_of_a_kind_are_none(self, make: MakeSettings, good: int, bad: int):
        sets, said = loaded(make(good, bad))
        assert sets.held_out is None
        assert said.endswith("4 and 4 for evaluation, none held out")

    def test_may_be_named(self, make: MakeSettings, tmp_path: Path):
        (tmp_path / "own.txt").write_text("\n".join(MORE[:10]))
        own = {"dataset": str(tmp_path / "own.txt")}
        sets, _ = loaded(make(0, REST, good_held_out_prompts=own))
        assert sets.held_out is not None
        assert (len(sets.held_out.good), len(sets.held_out.bad)) == (10, REST)

    def test_are_not_in_the_fingerprint(self, make: MakeSettings):
        without = make(0, 0)
        fingerprint = pipeline.fingerprint(without, loaded(without)[0])
        settings = make()  # the same files, with more rows
        assert pipeline.fingerprint(settings, loaded(settings)[0]) == fingerprint
        named = make(good_held_out_prompts={"dataset": only(settings.good_prompts).dataset})
        assert pipeline.fingerprint(named, loaded(named)[0]) == fingerprint


def open_session(settings: Settings) -> Any:
    """A session whose run is not locked, since no other process uses it."""
    prompts = pipeline.load_prompts(settings, Silent())
    folder, seed = pipeline.open_folder(settings, prompts)
    return pipeline.prepare(settings, prompts, folder, seed, Silent())


class TestExport:
    def test_the_scores_are_in_all_that_is_saved(self, make: MakeSettings, tmp_path: Path):
        session = open_session(make())
        (trial,) = pipeline.search(session)
        exported = pipeline.export_trial(session, trial, tmp_path / "edited", "merge")
        found = exported.held_out
        assert found is not None
        assert (found.good, found.bad) == (REST, REST)
        assert [score.name for score in found.after] == ["refusals", "kl_divergence"]
        assert found.before[1].value == 0.0 < found.after[1].value
        assert found.after[1].value != trial.scores[1].value  # other prompts
        assert [s.display for s in exported.saved] == [s.display for s in trial.scores]
        # The session goes on as before.
        assert session.evaluator.evaluate([trial.plan])[0] == trial.scores
        assert pipeline.held_out_scores(session, trial) == found

        parameters = json.loads((tmp_path / "edited" / "abliteration_params.json").read_text())
        written = parameters["scores"]["held_out"]
        assert (written["good"], written["bad"]) == (REST, REST)
        assert [score["value"] for score in written["after"]] == [s.value for s in found.after]
        assert written["before"][1]["value"] == 0.0
        card = (tmp_path / "edited" / "README.md").read_text()
        assert f"On {REST} good and {REST} bad prompts that it never saw" in card
        assert f"| {found.before[1].with_interval()} | {found.after[1].with_interval()} |" in card
        assert f"| {found.before[0].with_interval()} | {found.after[0].with_interval()} |" in card
        shown = table_text(trial.scores, exported)
        assert "original, held-out prompts" in shown
        assert "edited, held-out prompts" in shown
        assert found.after[1].display in shown

    def test_they_are_measured_once_in_a_run(
        self, make: MakeSettings, monkeypatch: pytest.MonkeyPatch
    ):
        session = open_session(make())
        (trial,) = pipeline.search(session)
        first = pipeline.held_out_scores(session, trial)
        measured: list[int] = []
        real = LibraryEvaluator.on

        def watched(*arguments: Any, **options: Any) -> Any:
            measured.append(1)
            return real(*arguments, **options)

        monkeypatch.setattr(LibraryEvaluator, "on", watched)
        again = open_session(make())  # as in another process
        assert pipeline.held_out_scores(again, trial) == first
        assert measured == []
        other = replace(trial, plan=replace(trial.plan, row_normalization="none"))
        pipeline.held_out_scores(again, other)
        assert measured == [1]
        changed = open_session(make(REST + 1))  # the same run, with one more held-out prompt
        assert changed.folder.path == session.folder.path
        assert pipeline.held_out_scores(changed, trial) is not None
        assert measured == [1, 1]
        path = session.folder.path / held_out.FILE
        path.write_bytes(path.read_bytes()[:-9])  # damaged
        assert pipeline.held_out_scores(again, trial) == first
        assert measured == [1, 1, 1]

    def test_scorers_with_prompts_of_their_own_have_no_figure(
        self, make: MakeSettings, tmp_path: Path
    ):
        """The search has used their prompts."""
        own = {"prompts": {"dataset": str(tmp_path / "good.txt"), "split": "train[:4]"}}
        scorers = [
            {"plugin": "refusal", "name": "refusals"},
            {"plugin": "over_refusal"},
            {"plugin": "kl_divergence"},
        ]
        session = open_session(make(scorers=scorers, scorer={"over_refusal": own}))
        (trial,) = pipeline.search(session)
        found = pipeline.held_out_scores(session, trial)
        assert found is not None
        names = ["refusals", "kl_divergence"]
        assert [score.name for score in found.before] == names
        assert [score.name for score in found.after] == names

    def test_without_held_out_prompts_nothing_is_said(self, make: MakeSettings, tmp_path: Path):
        session = open_session(make(0, 0))
        (trial,) = pipeline.search(session)
        exported = pipeline.export_trial(session, trial, tmp_path / "edited", "merge")
        assert exported.held_out is None
        parameters = json.loads((tmp_path / "edited" / "abliteration_params.json").read_text())
        assert parameters["scores"]["held_out"] is None
        card = (tmp_path / "edited" / "README.md").read_text()
        assert "prompts that it never saw" not in card
        assert "**Not measured:**" in card
        assert "prompts that the search never saw" in card
        assert "held-out" not in table_text(trial.scores, exported)


def table_text(searched: tuple[Score, ...], exported: pipeline.Exported) -> str:
    console = Console(width=120, record=True, quiet=False)
    with console.capture() as shown:
        console.print(saved_table(export_case.BASELINE, searched, exported, Path("edited")))
    return shown.get()


@pytest.mark.parametrize("verified", [None, export_case.SCORES])
def test_the_card_keeps_both_tables_apart(base: Path, verified: tuple[Score, ...] | None):
    choice = export_case.request(export_case.settings(base), verified=verified)
    before = Score("refusals", 0.8, "minimize", "80/100")
    after = Score("refusals", 0.07, "minimize", "7/100")
    held_out = HeldOut((before,), (after,), 90, 100)
    text = model_card(replace(choice, held_out=held_out), "merge")
    searched, _, rest = text.partition("On 90 good and 100 bad prompts that it never saw")
    assert "| refusals | 18/20 | 2/20 |" in searched
    assert "| refusals | 80/100 | 7/100 |" in rest
    assert "80/100" not in model_card(choice, "merge")


def rate(name: str, count: int, n: int = 100, optimization: Optimization = "minimize") -> Score:
    values = [True] * count + [False] * (n - count)
    ends = interval(values)
    return Score(name, count / n, optimization, f"{count}/{n}", interval=ends)


def test_a_gap_between_search_and_held_out_is_told():
    searched = (rate("refusals", 3), rate("kept", 90, optimization="maximize"))
    (told,) = held_out.gaps(searched, (rate("refusals", 14), rate("kept", 88)))
    assert told.startswith("refusals is worse on prompts that the search never saw: 14/100 [")
    assert "in the search 3/100 [" in told
    fallen = (rate("refusals", 0), rate("kept", 70, optimization="maximize"))
    (told,) = held_out.gaps(searched, fallen)
    assert told.startswith("kept is worse")
    assert held_out.gaps(searched, (rate("refusals", 6), rate("kept", 84))) == []  # chance
    assert held_out.gaps((Score("a", 0.1, "minimize", "0.1"),), (rate("a", 90),)) == []


def broken(*_: Any, **__: Any) -> list[Plan]:
    """A sweep on a model whose kernels have no gradient."""
    raise RuntimeError("no backward pass")


class TestSearches:
    """What the settings make of a search; the sweep itself is made up."""

    SWEEP = tuple(
        Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={ATTENTION: LayerWeights(((n / 2,),) * 3), MLP: LayerWeights(((n / 4,),) * 3)},
            row_normalization="full",
        )
        for n in range(1, 4)
    )

    IN_ORDER = (SWEEP[2], SWEEP[0], SWEEP[1])
    """The last one, then halfway, and so on."""

    @pytest.fixture(autouse=True)
    def sweeps(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Seeds of the sweeps made; each gives a plan twice, as rounding may."""
        made: list[int] = []

        def sweep(*_: Any, seed: int, **__: Any) -> list[Plan]:
            made.append(seed)
            return [self.SWEEP[0], *self.SWEEP]

        monkeypatch.setattr(beginning, "sweep_plans", sweep)
        return made

    def plans(self, settings: Settings) -> list[Plan]:
        session = open_session(settings)
        pipeline.search(session)
        return [trial.plan for trial in session.study.trials]

    def test_gradient_ends_with_the_sweep(self, make: MakeSettings, sweeps: list[int]):
        settings = make(search="gradient", n_trials=9)
        assert self.plans(settings) == list(self.IN_ORDER)
        assert self.plans(settings) == list(self.IN_ORDER)  # the run is resumed: the sweep was kept
        assert sweeps == [7]
        assert self.plans(make(search="gradient", n_trials=2, seed=8)) == list(self.IN_ORDER[:2])

    @pytest.mark.parametrize("count", range(1, 14))
    def test_every_plan_is_tried_once_and_the_ends_first(self, count: int):
        plans = [self.SWEEP[0]] * count
        numbered = [replace(plan, direction_index=float(i)) for i, plan in enumerate(plans)]
        found = [int(plan.direction_index or 0) for plan in method._halving(numbered)]
        assert sorted(found) == list(range(count))
        assert found[0] == count - 1
        gaps = [after - before for before, after in pairwise([-1, *sorted(found[:3])])]
        assert max(gaps) <= count // 2 + 1

    def test_ablation_goes_on_around_it(self, make: MakeSettings, sweeps: list[int]):
        settings = make(search="ablation", n_trials=5, n_startup_trials=2)
        plans = self.plans(settings)
        assert plans[:3] == list(self.IN_ORDER)
        assert len(set(plans)) == 5
        assert all(isinstance(kernel, LayerWeights) for plan in plans for _, kernel in plan.kernels)
        again = self.plans(settings.replaced(n_trials=6))
        assert again[:5] == plans
        assert sweeps == [7]

    def test_one_that_fails_is_tried_again_until_there_are_trials(
        self, make: MakeSettings, sweeps: list[int], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(beginning, "sweep_plans", broken)
        monkeypatch.setattr(beginning, "AUTO", "ablation")
        settings = make(search="auto", n_trials=2)
        assert open_session(settings).study.start_plans == ()
        monkeypatch.undo()  # as if memory had run out then
        monkeypatch.setattr(beginning, "sweep_plans", lambda *_, **__: list(self.SWEEP))
        assert open_session(settings).study.start_plans == self.IN_ORDER

    def test_a_search_that_began_without_one_goes_on_so(
        self, make: MakeSettings, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(beginning, "sweep_plans", broken)
        monkeypatch.setattr(beginning, "AUTO", "ablation")
        settings = make(search="auto", n_trials=1)
        (first,) = self.plans(settings)
        monkeypatch.setattr(beginning, "sweep_plans", lambda *_, **__: list(self.SWEEP))
        assert self.plans(settings.replaced(n_trials=2))[0] == first
        assert open_session(settings).study.start_plans == ()

    @pytest.mark.parametrize("search", ["gradient", "ablation"])
    def test_who_asks_for_one_is_told_that_there_is_none(
        self, make: MakeSettings, search: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(beginning, "sweep_plans", broken)
        with pytest.raises(StudyError, match="no backward pass"):
            open_session(make(search=search))
        assert open_session(make(search="tpe")).study.start_plans == ()

    def test_an_interruption_is_no_failure(
        self, make: MakeSettings, monkeypatch: pytest.MonkeyPatch
    ):
        def interrupted(*_: object, **__: object) -> None:
            raise ImportError("scipy is imported by half") from KeyboardInterrupt()

        monkeypatch.setattr(beginning, "sweep_plans", interrupted)
        monkeypatch.setattr(beginning, "AUTO", "ablation")
        with pytest.raises(ImportError, match="by half"):
            open_session(make(search="auto"))

    @pytest.mark.parametrize("search", ["tpe", "gp"])
    def test_others_make_no_sweep(self, make: MakeSettings, sweeps: list[int], search: str):
        assert len(self.plans(make(search=search, n_trials=2, plans_at_once=2))) == 2
        assert sweeps == []

    def test_a_run_with_several_directions_is_taken_up(self, make: MakeSettings):
        settings = make(max_rank=2, n_trials=1)
        first = self.plans(settings)
        assert self.plans(settings.replaced(n_trials=2))[:1] == first
