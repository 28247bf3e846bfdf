"""A place for workers: a tiny model, prompts, and the settings of a search, also as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heretic.main import main
from heretic.records import Trial
from heretic.runs.folder import RunFolder
from heretic.runs.listing import list_runs
from heretic.worker.protocol import Message
from tests.support import export_case, tiny

RUNS = "runs"
HELLO = [Message(role="user", content="Name a colour.")]


def settings_in(place: Path, **values: Any) -> dict[str, Any]:
    """The settings of a search with a seed; the model and prompts lie in `place`.

    Args:
        values: Other settings.
    """
    return {
        "model": str(place / "Tiny-Base"),
        "dtypes": ["float32"],
        "batch_size": 4,
        "response_prefix": "",
        "max_response_length": 4,
        "seed": 7,
        "search": "tpe",
        "n_startup_trials": 2,
        "n_trials": 6,
        "force": True,
        "report_length": 24,
        "study_checkpoint_dir": str(place / RUNS),
        **{name: dict(table) for name, table in export_case.prompt_files(place).items()},
        **values,
    }


def make_place(place: Path) -> Path:
    """Make the model and the prompts."""
    tiny.folder(place / "Tiny-Base")
    export_case.prompt_files(place)
    return place


def as_toml(settings: dict[str, Any]) -> str:
    """Settings as a file."""
    import tomlkit

    return tomlkit.dumps(settings)


def searched_by_command(place: Path, **values: Any) -> int:
    """Search, or go on, as the command does; returns its exit status."""
    file = place / "settings.toml"
    file.write_text(as_toml(settings_in(place, **values)))
    return main(["--config", str(file), "--model-action", "none"])


def only_run(place: Path) -> RunFolder:
    """The one run of a place."""
    (row,) = list_runs(place / RUNS)
    return RunFolder(row.path)


def comparable(trials: list[Trial]) -> list[tuple[Any, ...]]:
    """What has to be equal of trials: all but their times."""
    return [(one.number, one.state, one.plan, one.scores) for one in trials]
