"""Changing one layer at a time: each effect is that of the hooks on that layer alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support import export_case, zoo
from tests.support.search_case import Recorder
from tests.support.session import session_of
from torch import Tensor

from heretic import pipeline
from heretic.errors import RunError, ScorerError, UnsupportedModelError
from heretic.evaluator.evaluator import Evaluator
from heretic.events import StageProgress
from heretic.method.controls import rotated
from heretic.model import Model
from heretic.pipeline.layerwise import NO_LENGTHS, PLAIN, layer_effects, spread_layers
from heretic.prompts import Prompt
from heretic.records.effects import Change, LayerEffects, Vector
from heretic.records.trial import Score


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Session:
    return session_of(tmp_path_factory.mktemp("run"))


def vectors(session: pipeline.Session) -> Tensor:
    """Long enough for the tiny model's replies to change."""
    return 40.0 * session.directions


def measured(session: pipeline.Session, **changed: object) -> LayerEffects:
    options: dict[str, object] = {
        "model": session.model,
        "prompts": session.prompts.evaluation,
        "scorers": session.evaluator.scorers,
        "directions": session.directions,
        "differences": vectors(session),
        "layers": [2, 0],
        "most_prompts": 3,
        "max_response_length": 4,
        "seed": 7,
        "reporter": None,
        **changed,
    }
    found: LayerEffects = layer_effects(**options)  # type: ignore[arg-type]
    return found


def values(scores: tuple[Score, ...]) -> list[tuple[float, ...]]:
    return [score.values for score in scores]


def test_each_effect_is_that_of_one_layer(session: pipeline.Session):
    found, model = measured(session), session.model
    assert found.layers == [0, 2]
    assert found.prompts == {"removed": 3, "added": 3}
    assert set(found.originals) == {"removed", "added"}
    assert model.is_original
    prompts = session.prompts.evaluation
    good, bad = prompts.good[:3], prompts.bad[:3]
    sets: dict[Change, Sequence[Prompt]] = {"removed": bad, "added": good}
    vectors_of: tuple[Vector, Vector] = ("direction", "random")
    for change, asked in sets.items():
        evaluator = Evaluator(
            model,
            replace(prompts, good=good, bad=asked),
            session.evaluator.scorers,
            max_response_length=4,
            techniques=PLAIN,
        )
        assert values(found.originals[change]) == values(evaluator.baseline)
        for vector in vectors_of:
            own = session.directions if change == "removed" else vectors(session)
            own = own if vector == "direction" else rotated(own, 7)
            for layer in (0, 2):
                alone = torch.zeros_like(own)
                alone[layer + 1] = own[layer + 1]
                how = model.without if change == "removed" else model.steered
                with how(alone):
                    expected = evaluator.score_current()
                assert values(found.of(change, vector)[layer]) == values(expected)
    kl = {
        (change, layer): found.of(change, "direction")[layer][1].value
        for change in sets
        for layer in (0, 2)
    }
    assert len(set(kl.values())) == 4
    assert min(kl.values()) > 0


def test_the_random_vector_is_as_long(session: pipeline.Session):
    own = vectors(session)
    assert torch.allclose(rotated(own, 7).norm(dim=-1), own.norm(dim=-1), atol=1e-3)
    assert not torch.allclose(rotated(own, 7), own, atol=1.0)


def test_without_lengths_nothing_is_added_and_it_is_said(session: pipeline.Session):
    recorder = Recorder()
    found = measured(session, differences=None, layers=[1], reporter=recorder)
    assert set(found.originals) == {"removed"}
    assert found.left_out == (NO_LENGTHS,)
    steps = [(event.done, event.total) for event in recorder.of(StageProgress)]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_layers_without_a_direction_are_left_out(session: pipeline.Session):
    directions = session.directions.clone()
    directions[1] = 0.0
    found = measured(session, directions=directions, differences=None, layers=[0, 1])
    assert found.layers == [1]
    assert "layers without a direction: 0" in found.left_out


def test_prompts_are_counted_for_each_change(session: pipeline.Session):
    prompts = session.prompts.evaluation
    found = measured(session, prompts=replace(prompts, good=prompts.good[:2]), layers=[1])
    assert found.prompts == {"removed": 3, "added": 2}


def test_without_any_direction_nothing_is_measured(session: pipeline.Session):
    directions = session.directions.clone()
    directions[1:3] = 0.0
    with pytest.raises(RunError, match=r"None of the chosen layers has a direction.*\(0, 1\)"):
        measured(session, directions=directions, differences=None, layers=[0, 1])


def test_layers_with_several_streams_are_refused_before_anything_is_scored(
    session: pipeline.Session, tmp_path: Path
):
    model = Model(export_case.settings(zoo.tiny_folder(tmp_path, "gemma3n_text")))
    recorder = Recorder()
    directions = torch.ones(model.n_layers + 1, model.hidden_size)
    directions[0] = 0.0
    with pytest.raises(UnsupportedModelError, match="several residual streams"):
        measured(
            session,
            model=model,
            directions=directions,
            differences=None,
            layers=[0],
            reporter=recorder,
        )
    assert recorder.events == []


def test_unknown_layers_and_missing_scorers_are_refused(session: pipeline.Session):
    with pytest.raises(ValueError, match="layers 0 to 2, not 3"):
        measured(session, layers=[3])
    with pytest.raises(ScorerError, match="No scorer of the run"):
        measured(session, scorers=[], differences=None, layers=[0])


def test_layers_are_spread_from_the_first_to_the_last():
    assert spread_layers(3) == [0, 1, 2]
    assert spread_layers(30) == [0, 4, 8, 12, 17, 21, 25, 29]
