"""Steering: a strength of 0 is the original, 1 the edit or one vector; nothing stays behind."""

from __future__ import annotations

import math

import pytest
import torch
from tests.support import export_case, tiny
from torch import Tensor

from heretic.model import Model
from heretic.records.plan import Kernel, Plan, RowNormalization

PROMPTS = tiny.GOOD_PROMPTS[:3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    found = Model(export_case.settings(tiny.folder(tmp_path_factory.mktemp("model"))))
    found.add_fits([export_case.fit()])
    return found


def vectors(model: Model) -> Tensor:
    torch.manual_seed(1)
    found = 3.0 * torch.randn(model.n_layers + 1, model.hidden_size)
    found[0] = 0.0
    return found


def plan(kind: RowNormalization, factor: float = 1.0) -> Plan:
    return Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels={
            name: Kernel(factor * 0.75, 1.0, factor * 0.75, 2.0)
            for name in ("attn.o_proj", "mlp.down_proj")
        },
        row_normalization=kind,
    )


@pytest.mark.parametrize("kind", ["none", "pre", "full"])
def test_the_strength_of_a_trial_multiplies_its_ablation_weights(
    model: Model, kind: RowNormalization
):
    directions = torch.nn.functional.normalize(vectors(model), dim=-1)
    original = model.get_logits(PROMPTS)
    with model.edited(plan(kind), directions):
        once = model.get_logits(PROMPTS)
    with model.edited(plan(kind), directions, 1.0):
        assert torch.equal(model.get_logits(PROMPTS), once)
    with model.edited(plan(kind), directions, 0.0):
        assert torch.equal(model.get_logits(PROMPTS), original)
    with model.edited(plan(kind, 2.0), directions):
        twice = model.get_logits(PROMPTS)
    with model.edited(plan(kind), directions, 2.0):
        assert torch.equal(model.get_logits(PROMPTS), twice)
    assert not torch.allclose(once, original, atol=1e-3)
    assert not torch.allclose(once, twice, atol=1e-3)
    assert torch.equal(model.get_logits(PROMPTS), original)


def test_the_strength_scales_a_fit_too(model: Model):
    fitted, directions = export_case.fitted_plan(), export_case.directions()
    once = model.plan_edits(fitted, directions)
    half = model.plan_edits(fitted, directions, 0.5)
    assert once.keys() == half.keys()
    for name, edit in once.items():
        assert torch.equal(0.5 * edit.write, half[name].write)
        assert torch.equal(edit.read, half[name].read)


def test_vectors_are_added_to_the_output_of_their_layer(model: Model):
    before = model.get_residuals(PROMPTS)
    last = torch.zeros_like(vectors(model))
    last[-1] = vectors(model)[-1]
    with model.steered(last, 0.5):
        after = model.get_residuals(PROMPTS)
    assert torch.equal(after[:, :-1], before[:, :-1])
    assert torch.allclose(after[:, -1], before[:, -1] + 0.5 * last[-1], atol=1e-5)
    with model.steered(vectors(model)):
        after = model.get_residuals(PROMPTS)
    assert torch.allclose(after[:, 1], before[:, 1] + vectors(model)[1], atol=1e-5)
    assert not torch.allclose(after[:, 2], before[:, 2] + vectors(model)[2], atol=1e-2)


def test_nothing_stays_behind(model: Model):
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    original = model.get_logits(PROMPTS)
    with model.steered(vectors(model), 0.0):
        assert torch.equal(model.get_logits(PROMPTS), original)
    with model.steered(vectors(model)):
        assert model.is_hooked
        steered = model.get_logits(PROMPTS)
        with model.unedited():
            assert torch.equal(model.get_logits(PROMPTS), original)
        assert torch.equal(model.get_logits(PROMPTS), steered)
        assert not torch.allclose(steered, original, atol=1e-2)
    assert model.is_original
    assert torch.equal(model.get_logits(PROMPTS), original)
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_a_strength_is_a_finite_number(model: Model, strength: float):
    with pytest.raises(ValueError, match="finite"), model.steered(vectors(model), strength):
        pass
    directions = torch.nn.functional.normalize(vectors(model), dim=-1)
    with pytest.raises(ValueError, match="finite"):  # noqa: SIM117
        with model.edited(plan("none"), directions, strength):
            pass


def test_vectors_of_another_model_are_refused(model: Model):
    found = vectors(model)
    odd = {
        "width": found[:, 1:],
        "shape": found[1:],
        "embeddings": found + 1.0,
        "finite": found / 0.0,
    }
    for told, wrong in odd.items():
        with pytest.raises(ValueError, match=told), model.steered(wrong):
            pass


def test_a_direction_is_taken_out_of_the_output_of_its_layer(model: Model):
    before = model.get_residuals(PROMPTS)
    alone = torch.zeros_like(vectors(model))
    alone[2] = vectors(model)[2]
    unit = alone[2] / alone[2].norm()
    assert (before[:, 2] @ unit).abs().min() > 0.01
    with model.without(alone):
        after = model.get_residuals(PROMPTS)
        assert not model.is_original
        with model.unedited():
            assert torch.equal(model.get_residuals(PROMPTS), before)
    assert torch.equal(after[:, :2], before[:, :2])
    expected = before[:, 2] - (before[:, 2] @ unit).unsqueeze(-1) * unit
    assert torch.allclose(after[:, 2], expected, atol=1e-5)
    assert not torch.allclose(after[:, 3], before[:, 3], atol=1e-3)
    assert torch.equal(model.get_residuals(PROMPTS), before)


def test_the_length_of_a_direction_that_is_taken_out_does_not_count(model: Model):
    with model.without(vectors(model)):
        once = model.get_logits(PROMPTS)
    with model.without(7.0 * vectors(model)):
        assert torch.allclose(model.get_logits(PROMPTS), once, atol=1e-5)
    with pytest.raises(ValueError, match="width"), model.without(vectors(model)[:, 1:]):
        pass
