"""Plans in files that people name: of a run, of an export, or written by hand."""

from __future__ import annotations

from pathlib import Path

from heretic.errors import RunError
from heretic.records.plan import Plan
from heretic.runs.folder import RunFolder
from heretic.runs.store import FRONT
from heretic.system.documents import read_json

_IN_FOLDERS = (FRONT, "abliteration_params.json")
"""Files with plans in the folder of a run or of an export."""

_WHICH = "Name a run's front.json, or the abliteration_params.json of a saved model"


def read_plans(path: Path) -> tuple[Plan, ...]:
    """Read plans from JSON: a plan, a list of plans, `front.json`, or `abliteration_params.json`.

    Raises:
        RunError: The file cannot be read or holds no plan, or is a run's `front.json` and damaged.
    """
    if path.is_dir():
        inside = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), None)
        raise RunError(
            f"{path} is a folder, not a file with a plan.",
            remedy=f"Name the file in it: {inside}." if inside else f"{_WHICH}.",
        )
    RunFolder(path.parent).check_recorded(path.name)
    data = read_json(path)
    rows = data if isinstance(data, list) else [data]
    if not rows:
        raise RunError(f"{path} holds no plan.")
    try:
        return tuple(
            Plan.from_dict(row["plan"] if isinstance(row, dict) and "plan" in row else row)
            for row in rows
        )
    except RunError as error:
        raise RunError(f"{path}: {error.message}", remedy=f"{_WHICH}.") from error
