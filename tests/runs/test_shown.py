"""The file of what a report shows: read as written, and refused where it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import run_case

from heretic.errors import RunError
from heretic.records import Score
from heretic.runs.folder import RunFolder
from heretic.runs.shown import (
    ORIGINAL,
    VERSION,
    Asked,
    Exported,
    ModuleSize,
    Reply,
    ReplySet,
    Shown,
    read_shown,
    write_shown,
)

SCORE = Score("refusals", 0.25, "minimize", "1/4", interval=(0.05, 0.7))
REPLIES = ReplySet(
    "bad",
    8,
    2,
    (Asked("Why?", "Be brief.", "questions"), Asked("\ud800 half a character")),
    {
        ORIGINAL: (Reply("No.", "refusal", (0, 3)), Reply("")),
        "3": (Reply("Because.", "compliance"), Reply("x", None)),
    },
)
SHOWN = Shown(
    replies=(REPLIES,),
    geometry=({"layer": 0, "silhouette": 0.5, "cos_previous": None},),
    geometry_prompts=(10, 12),
    lengths=(0.0, 2.5),
    sizes={"3": (ModuleSize(0, "mlp.down_proj", 0.01), ModuleSize(1, "mlp.down_proj", None))},
    exports=(
        Exported(
            3, "2026-01-02T03:04:05+00:00", "merge", "/x", {"from disk": (SCORE,)}, {}, None, 5
        ),
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return run_case.make_run(tmp_path / "run")


def test_it_is_read_as_it_was_written(folder: RunFolder) -> None:
    assert read_shown(folder) is None
    with folder.lock():
        write_shown(folder, SHOWN)
    assert read_shown(RunFolder(folder.path)) == SHOWN


def test_what_is_not_finite_is_none(folder: RunFolder) -> None:
    with folder.lock():
        write_shown(folder, replace(SHOWN, geometry=({"layer": 1, "probe": float("nan")},)))
    found = read_shown(folder)
    assert found is not None
    assert found.geometry == ({"layer": 1, "probe": None},)


def test_replies_to_a_set_replace_those_of_the_same_length(folder: RunFolder) -> None:
    longer, other = replace(REPLIES, tokens=64), replace(REPLIES, detector=3)
    found = SHOWN.with_replies([longer]).with_replies([other])
    assert found.replies == (other, longer)


def test_damage_and_newer_releases_are_told(folder: RunFolder) -> None:
    path = folder.path / "report.json"
    with folder.lock():
        write_shown(folder, SHOWN)
        text = path.read_text()
        path.write_text(text.replace("Because", "Perhaps"))
        with pytest.raises(RunError, match="checksum"):
            read_shown(folder)
        path.write_text(text)
        folder.write_file("report.json", json.dumps({**SHOWN.to_dict(), "version": VERSION + 1}))
    with pytest.raises(RunError, match=f"this release reads {VERSION}"):
        read_shown(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"replies": [{}]},
        {"replies": 5},
        {"sizes": {"3": [[0, "x"]]}},
        {"exports": [{"trial": -1}]},
        {"geometry_prompts": [1]},
        {"geometry": [{"layer": "0"}]},
    ],
)
def test_what_is_malformed_is_damage(folder: RunFolder, change: dict[str, object]) -> None:
    with folder.lock():
        folder.write_file("report.json", json.dumps({**SHOWN.to_dict(), **change}))
    with pytest.raises(RunError, match="Cannot read"):
        read_shown(folder)


def test_a_reply_is_missing(folder: RunFolder) -> None:
    short = replace(REPLIES, replies={ORIGINAL: REPLIES.replies[ORIGINAL][:1]})
    with folder.lock():
        write_shown(folder, replace(SHOWN, replies=(short,)))
    with pytest.raises(RunError, match="original has 1 replies to 2 prompts"):
        read_shown(folder)
