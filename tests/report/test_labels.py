"""Names beside points: none upon another, none below the picture."""

from __future__ import annotations

from itertools import pairwise

import pytest

from heretic.report.labels import Named, lifts


def test_a_name_stands_above_its_point_if_nothing_is_there() -> None:
    assert lifts([Named(0, 50, 40), Named(90, 50, 40)], 10, 100) == [-7, -7]


@pytest.mark.parametrize("y", [0.0, 50.0, 100.0])
@pytest.mark.parametrize("gap", [0.0, 3.0, 9.0])
def test_names_of_near_points_do_not_touch(y: float, gap: float) -> None:
    names = [Named(20.0 * i, y + gap * i, 60) for i in range(4)]
    found = [name.y + lift for name, lift in zip(names, lifts(names, 10, 130), strict=True)]
    ordered = sorted(found)
    assert min(b - a for a, b in pairwise(ordered)) >= 10
    assert max(found) <= 130


def test_a_name_finds_a_place_however_many_there_are() -> None:
    assert len(lifts([Named(0, 50, 40)] * 20, 10, 100)) == 20
