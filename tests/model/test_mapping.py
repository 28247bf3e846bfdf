"""Weights are mapped from their files, so that processes on one machine share their memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.support import tiny

from heretic.config import Settings
from heretic.model import Model

MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells mappings by /proc")
def test_weights_in_the_dtype_of_their_file_are_not_copied(tmp_path: Path) -> None:
    file = tiny.folder(tmp_path) / "model.safetensors"
    model = Model(Settings(model=str(tmp_path), dtypes=["float32"], response_prefix=""))
    places = []
    for line in MAPS.read_text(encoding="utf-8").splitlines():
        if line.endswith(str(file)):
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            places.append(range(begin, end))
    weights = dict(model.model.named_parameters())
    outside = {
        name
        for name, weight in weights.items()
        if not any(weight.data_ptr() in place for place in places)
    }
    assert len(weights) > 10
    assert not outside
