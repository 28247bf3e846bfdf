"""A working folder for the page: a tiny model, prompts, and settings that are found there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomlkit

from tests.support import export_case, tiny


def make_folder(place: Path, *, name: str = "Tiny-Base", **values: Any) -> Path:
    """A folder with config.toml, so that the page needs only the model; returns the model's."""
    model = tiny.folder(place / name, max_position_embeddings=512)
    settings = {
        **export_case.prompt_files(place),
        "dtypes": ["float32"],
        "batch_size": 4,
        "response_prefix": "",
        "max_response_length": 4,
        "search": "tpe",
        "seed": 7,
        "n_trials": 4,
        "report_length": 8,
        "force": True,
        "study_checkpoint_dir": str(place / "runs"),
        **values,
    }
    (place / "config.toml").write_text(tomlkit.dumps(settings), encoding="utf-8")
    return model
