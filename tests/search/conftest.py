"""A tiny model and its directions, for what searches by gradients."""

from __future__ import annotations

import pytest
from tests.support import tiny
from torch import Tensor

from heretic.config import Settings
from heretic.method.directions import difference_directions
from heretic.model import Model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tiny.folder(tmp_path_factory.mktemp("model"))
    settings = Settings.restore({"model": str(path), "dtypes": ["float32"], "batch_size": 8})
    return Model(settings)


@pytest.fixture(scope="module")
def directions(model: Model) -> Tensor:
    good, bad = map(model.get_residual_means, (tiny.GOOD_PROMPTS, tiny.BAD_PROMPTS))
    return difference_directions(good, bad, orthogonalize=True)
