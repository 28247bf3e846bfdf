"""A configuration that promises far more than the files hold is refused before memory is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support import tiny

from heretic.config import Settings
from heretic.errors import ModelError
from heretic.model import Model


def refused(folder: Path, **values: Any) -> str:
    """What is said when a model is loaded whose configuration has these values."""
    file = tiny.folder(folder) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(ModelError) as error:
        Model(Settings(model=str(folder), dtypes=["float32"], response_prefix=""))
    assert "dtypes" not in str(error.value)
    return str(error.value)


def test_a_configuration_of_a_larger_model(tmp_path: Path) -> None:
    """Such as one that lacks its sizes: then those of the first model of its kind hold."""
    larger = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    said = refused(tmp_path, **larger)
    assert "promises 4,343,492,608 weights" in said
    assert "the files hold 39,840: they lack model.layers.3-31.input_layernorm.weight" in said
    assert "and the files hold 39,840. Use" in refused(tmp_path, vocab_size=10**9)


@pytest.mark.parametrize("layers", [10**9, 10**300])
@pytest.mark.parametrize("part", [None, "text_config"])
def test_more_layers_than_any_model_has(tmp_path: Path, layers: int, part: str | None) -> None:
    numbers: dict[str, Any] = {"num_hidden_layers": layers}
    said = refused(tmp_path, **(numbers if part is None else {part: numbers}))
    assert f"config.json cannot be used: num_hidden_layers is {layers}" in said


@pytest.mark.parametrize("layers", [0, -1])
def test_no_layers(tmp_path: Path, layers: int) -> None:
    assert "has no decoder layers. Mend its config.json" in refused(
        tmp_path, num_hidden_layers=layers
    )


@pytest.mark.parametrize("width", [-32, 10**30])
def test_widths_that_no_model_can_have(tmp_path: Path, width: int) -> None:
    assert "Mend its config.json" in refused(tmp_path, hidden_size=width)
