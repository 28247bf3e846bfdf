"""Projections of every token's residual on the directions of all layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support import export_case, tiny, zoo

from heretic.model import Model

TEXT = "Why is the moon far?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(export_case.settings(tiny.folder(tmp_path_factory.mktemp("model"))))


def directions(model: Model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(model.n_layers + 1, model.hidden_size, generator=generator)


def test_each_token_has_the_residual_of_the_text_up_to_it(model: Model):
    found, (ids,) = directions(model), model.encode_rows([TEXT])
    values = model.get_projections(ids, found)
    assert values.shape == (model.n_layers + 1, len(ids))
    assert values.dtype == torch.float32
    last = (model.get_residuals([TEXT])[0] * found).sum(dim=-1)
    assert torch.allclose(values[:, -1], last, atol=1e-4)
    assert torch.allclose(model.get_projections(ids[:5], found), values[:, :5], atol=1e-4)
    assert not torch.allclose(values[:, 3], values[:, 4], atol=1e-2)


def test_steering_shows_in_them(model: Model):
    found, (ids,) = directions(model), model.encode_rows([TEXT])
    before = model.get_projections(ids, found)
    vectors = torch.zeros_like(found)
    vectors[-1] = found[-1] / found[-1].norm() ** 2
    with model.steered(vectors, 2.0):
        after = model.get_projections(ids, found)
    assert torch.equal(after[:-1], before[:-1])
    assert torch.allclose(after[-1], before[-1] + 2.0, atol=1e-4)


def test_several_streams_count_as_the_one_that_directions_are_found_in(tmp_path: Path):
    model = Model(export_case.settings(zoo.tiny_folder(tmp_path, "deepseek_v4")))
    found, (ids,) = directions(model), model.encode_rows([TEXT])
    last = (model.get_residuals([TEXT])[0] * found).sum(dim=-1)
    assert torch.allclose(model.get_projections(ids, found)[:, -1], last, atol=1e-3)


def test_what_does_not_fit_is_refused(model: Model):
    found, (ids,) = directions(model), model.encode_rows([TEXT])
    with pytest.raises(ValueError, match="do not fit a model with 3 layers of width 32"):
        model.get_projections(ids, found[1:])
    with pytest.raises(ValueError, match="without tokens"):
        model.get_projections([], found)
