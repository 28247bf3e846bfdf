"""Figures of a run that goes on are compared as figures, not as texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.search_case import Recorder

from heretic.events import Notice
from heretic.pipeline.run import _warn_of_changes
from heretic.records import Score
from heretic.runs.manifest import RunManifest

REFUSED = Score("refusals", 0.5, "minimize", "4/8 (1 degenerate)", values=(1.0,) * 4 + (0.0,) * 4)


@pytest.mark.parametrize(
    ("now", "warned"),
    [
        (REFUSED, False),
        (replace(REFUSED, display="4/8"), False),
        (replace(REFUSED, value=0.500001), False),
        (replace(REFUSED, value=0.625, display="5/8"), True),
        (replace(REFUSED, value=0.625), True),
        (replace(REFUSED, name="others"), True),
    ],
)
def test_a_warning_follows_the_figures(now: Score, warned: bool, tmp_path: Path) -> None:
    known = RunManifest(
        model="m", digest="", seed=1, fingerprint={}, settings={},
        found={"baseline": [REFUSED.to_dict()]},
    )  # fmt: skip
    heard = Recorder()
    _warn_of_changes(known, (now,), heard)
    assert [notice.level for notice in heard.of(Notice)] == ["warning"] * warned
