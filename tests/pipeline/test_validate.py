"""Controls of a chosen plan: identities, what is kept, and faults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import export_case, tiny
from tests.support.search_case import Recorder

from heretic import pipeline
from heretic.config import Settings
from heretic.errors import PromptError, RunError, StudyError
from heretic.events import Silent, StageStarted
from heretic.pipeline import validate as module
from heretic.pipeline.validate import FILE, Validation, load_topic, validate
from heretic.prompts import Prompt
from heretic.records import ATTENTION, MLP, LayerWeights, Plan, Trial

TOPIC = [Prompt(f"Where is the {body}?") for body in ("moon", "sun", "comet", "star")]
SEARCHED = Plan.create(
    direction_scope="per layer",
    direction_index=None,
    kernels={
        ATTENTION: LayerWeights(((0.5,), (1.0,), (0.75,))),
        MLP: LayerWeights(((0.25,), (1.0,), (0.5,))),
    },
    row_normalization="full",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base") / "Tiny-Base")


@pytest.fixture
def settings(tmp_path: Path, base: Path) -> Settings:
    return export_case.settings(
        base,
        **export_case.prompt_files(tmp_path),
        scorers=[{"plugin": "words", "name": "words"}, {"plugin": "kl_divergence"}],
        search="tpe",
        n_trials=1,
        study_checkpoint_dir=str(tmp_path / "runs"),
    )


def session_of(settings: Settings, reporter: Any = None) -> pipeline.Session:
    reporter = reporter or Silent()
    prompts = pipeline.load_prompts(settings, reporter)
    folder, seed = pipeline.open_folder(settings, prompts)
    return pipeline.prepare(settings, prompts, folder, seed, reporter)


def trial_of(session: pipeline.Session, plan: Plan = SEARCHED) -> Trial:
    return Trial(0, plan, session.evaluator.evaluate([plan])[0])


def by_kind(found: Validation) -> dict[str, list[tuple[float, ...]]]:
    """The values of all scores, by kind of control."""
    kinds: dict[str, list[tuple[float, ...]]] = {}
    for control in found.controls:
        values = tuple(score.value for score in control.scores)
        kinds.setdefault(control.kind, []).append(values)
    return kinds


class TestIdentities:
    def test_the_chosen_plan_scores_as_the_trial(self, settings: Settings) -> None:
        session = session_of(settings)
        (trial,) = pipeline.search(session)
        found = validate(session, trial, draws=1)
        assert found.controls[0].kind == "chosen"
        assert found.controls[0].scores == trial.scores
        assert found.baseline == session.evaluator.baseline

    def test_the_same_vectors_score_as_the_chosen_plan(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "rotated", lambda directions, seed: directions.clone())
        monkeypatch.setattr(module, "mixed", lambda good, bad, seed: (list(good), list(bad)))
        session = session_of(settings)
        found = validate(session, trial_of(session), session.prompts.bad, draws=2)
        kinds = by_kind(found)
        assert {kind: len(rows) for kind, rows in kinds.items()} == {
            "chosen": 1,
            "shuffled": 2,
            "random": 2,
            "topic": 1,
        }
        assert {row for rows in kinds.values() for row in rows} == set(kinds["chosen"])

    def test_other_vectors_score_otherwise_and_each_draw_differs(self, settings: Settings) -> None:
        session = session_of(settings)
        found = validate(session, trial_of(session), TOPIC, draws=3)
        kinds = by_kind(found)
        divergences = [row[1] for rows in kinds.values() for row in rows]
        assert len(set(divergences)) == len(divergences) == 8
        assert all(divergence > 0 for divergence in divergences)
        # The session goes on as before.
        assert session.evaluator.evaluate([SEARCHED])[0] == found.controls[0].scores

    def test_draws_repeat(self, settings: Settings, tmp_path: Path) -> None:
        first = session_of(settings)
        found = validate(first, trial_of(first), TOPIC)
        elsewhere = session_of(settings.replaced(study_checkpoint_dir=str(tmp_path / "other")))
        assert elsewhere.folder.path != first.folder.path
        assert validate(elsewhere, trial_of(elsewhere), TOPIC) == found

    def test_another_seed_draws_otherwise(self, settings: Settings) -> None:
        found = []
        for seed in (7, 8):
            session = session_of(settings.replaced(seed=seed))
            found.append(by_kind(validate(session, trial_of(session), draws=1)))
        assert found[0]["chosen"] == found[1]["chosen"]
        assert found[0]["random"] != found[1]["random"]
        assert found[0]["shuffled"] != found[1]["shuffled"]

    def test_directions_of_several_ranks_stay_orthonormal(self, settings: Settings) -> None:
        session = session_of(settings.replaced(max_rank=2))
        found = validate(session, trial_of(session, replace(SEARCHED, rank=2)), draws=1)
        assert set(by_kind(found)) == {"chosen", "shuffled", "random"}


class TestTopic:
    def test_is_the_direction_from_good_prompts_to_it(self, settings: Settings) -> None:
        session = session_of(settings)
        sets = replace(session.prompts, bad=TOPIC)
        directions = pipeline.compute_directions(settings, session.model, sets, Silent())
        expected = session.evaluator.evaluate([SEARCHED], directions=directions)[0]
        found = validate(session, trial_of(session), TOPIC, draws=1).controls[-1]
        assert (found.kind, found.scores) == ("topic", expected)
        assert found.shows is None  # no scorer of words tells what a behaviour is

    def test_replies_to_it_are_looked_at(self, settings: Settings) -> None:
        scorers = [{"plugin": "keyword", "name": "refusals"}, {"plugin": "kl_divergence"}]
        for markers, count in ((["", "x"], len(TOPIC)), (["no reply holds this"], 0)):
            changes = {"refusal_markers": markers, "scorers": scorers}
            session = session_of(settings.replaced(**changes))
            found = validate(session, trial_of(session), TOPIC, draws=1)
            assert found.controls[-1].shows == (count, len(TOPIC))
            assert found.left_out == ()

    def test_without_prompts_it_is_left_out_with_a_word(self, settings: Settings) -> None:
        session = session_of(settings)
        found = validate(session, trial_of(session), load_topic(settings), draws=1)
        assert "topic" not in by_kind(found)
        assert found.left_out == ("topic: topic_prompts is not set",)

    def test_comes_from_a_setting(self, settings: Settings, tmp_path: Path) -> None:
        (tmp_path / "topic.txt").write_text("\n".join(prompt.user for prompt in TOPIC))
        given = settings.replaced(topic_prompts={"dataset": str(tmp_path / "topic.txt")})
        assert [prompt.user for prompt in load_topic(given)] == [prompt.user for prompt in TOPIC]
        assert given.fingerprint() == settings.fingerprint()
        with pytest.raises(PromptError):
            load_topic(settings.replaced(topic_prompts={"dataset": str(tmp_path / "none.txt")}))


class TestKept:
    def test_a_second_call_measures_nothing(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = session_of(settings)
        trial = trial_of(session)
        first = validate(session, trial, TOPIC, draws=2)
        measured: list[str] = []
        real = module._measured

        def watched(session: Any, plan: Any, control: Any, topic: Any) -> Any:
            measured.append(control.title)
            return real(session, plan, control, topic)

        monkeypatch.setattr(module, "_measured", watched)
        again = session_of(settings)  # as in another process
        assert validate(again, trial, TOPIC, draws=2) == first
        assert measured == []
        validate(again, trial, TOPIC, draws=3)
        assert measured == ["shuffled labels 3", "random rotation 3"]
        measured.clear()
        validate(again, trial, TOPIC[:3], draws=2)
        assert measured == ["topic alone"]
        measured.clear()
        other = replace(trial, plan=replace(trial.plan, row_normalization="none"))
        validate(again, other, draws=1)
        assert measured == ["chosen plan", "shuffled labels 1", "random rotation 1"]

    def test_what_was_measured_before_an_interruption_is_kept(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = session_of(settings)
        trial = trial_of(session)

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(module, "rotated", interrupted)
            with pytest.raises(KeyboardInterrupt):
                validate(session, trial, draws=2)
        kept = json.loads((session.folder.path / FILE).read_text())
        kinds = [(row["kind"], row["draw"]) for row in kept.values()]
        assert kinds == [("chosen", 0), ("shuffled", 1), ("shuffled", 2)]
        assert len(validate(session, trial, draws=2).controls) == 5


class TestFit:
    def test_its_vectors_are_rotated_and_moved(self, settings: Settings) -> None:
        recorder = Recorder()
        session = session_of(settings, recorder)
        session.model.add_fits([export_case.fit()])
        found = validate(session, trial_of(session, export_case.fitted_plan()), TOPIC, draws=2)
        kinds = by_kind(found)
        assert {kind: len(rows) for kind, rows in kinds.items()} == {
            "chosen": 1,
            "random": 2,
            "layers": 2,
        }
        # A model of three layers has two ways of moving all, so two draws may be the same.
        assert len({*kinds["chosen"], *kinds["random"], kinds["layers"][0]}) == 4
        assert [reason.partition(":")[0] for reason in found.left_out] == [
            "shuffled labels and topic"
        ]
        started = [event.title for event in recorder.of(StageStarted)]
        assert "Scoring with other layers 2" in started

    def test_the_same_fit_scores_as_the_chosen_plan(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("rotated_fit", "moved_fit"):
            monkeypatch.setattr(module, name, lambda fit, seed: replace(fit))
        session = session_of(settings)
        session.model.add_fits([export_case.fit()])
        found = validate(session, trial_of(session, export_case.fitted_plan()), draws=1)
        assert len({rows[0] for rows in by_kind(found).values()}) == 1

    def test_a_model_of_one_layer_has_no_other_layers(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        small = tiny.folder(tmp_path / "One-Layer", num_hidden_layers=1)
        session = session_of(settings.replaced(model=str(small)))
        fit = export_case.fit()
        fit = replace(fit, write=fit.write[:, :, 1:2], read=fit.read[:, :, 1:2])
        session.model.add_fits([fit])
        plan = export_case.fitted_plan()
        kernels = tuple((name, replace(kernel, fit=fit.digest)) for name, kernel in plan.kernels)  # type: ignore[arg-type]
        found = validate(session, trial_of(session, replace(plan, kernels=kernels)), draws=1)
        assert set(by_kind(found)) == {"chosen", "random"}
        assert found.left_out[-1] == "other layers: the model has one"


class TestFaults:
    def test_a_score_that_is_not_finite_is_no_control(self, settings: Settings) -> None:
        session = session_of(settings)
        huge = LayerWeights(((1e38,), (1e38,), (1e38,)))
        plan = replace(SEARCHED, kernels=((MLP, huge),), row_normalization="none")
        with pytest.raises(StudyError, match="With chosen plan a score is not finite: "):
            validate(session, Trial(0, plan, ()))
        assert not (session.folder.path / FILE).exists()

    def test_a_plan_that_edits_nothing_has_no_control(self, settings: Settings) -> None:
        session = session_of(settings)
        nothing = replace(SEARCHED, kernels=((MLP, LayerWeights(((0.0,),) * 3)),))
        with pytest.raises(RunError, match="edits nothing"):
            validate(session, trial_of(session, nothing))

    def test_an_evaluator_without_directions_takes_those_it_is_given(
        self, settings: Settings
    ) -> None:
        session = session_of(settings)
        session.evaluator.directions = None
        with pytest.raises(ValueError, match="without directions"):
            session.evaluator.evaluate([SEARCHED])
        found = session.evaluator.evaluate([SEARCHED], directions=session.directions)[0]
        assert all(torch.isfinite(torch.tensor(score.value)) for score in found)
