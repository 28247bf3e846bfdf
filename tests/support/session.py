"""A session of a tiny model, ready to search."""

from __future__ import annotations

from pathlib import Path

from heretic import pipeline
from heretic.config import Settings
from tests.support import export_case, tiny
from tests.support.search_case import Recorder


def session_of(place: Path, **values: object) -> pipeline.Session:
    """Its run lies in `place/runs`; `values` are settings."""
    base = tiny.folder(place / "Tiny-Base", max_position_embeddings=512)
    options = {
        "search": "tpe",
        "n_trials": 3,
        "report_length": 24,
        "study_checkpoint_dir": str(place / "runs"),
    }
    settings: Settings = export_case.settings(
        base, **{**export_case.prompt_files(place), **options, **values}
    )
    prompts = pipeline.load_prompts(settings, Recorder())
    folder, seed = pipeline.open_folder(settings, prompts)
    return pipeline.prepare(settings, prompts, folder, seed, Recorder())
