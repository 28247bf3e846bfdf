"""The run of the same model that is nearest to some settings, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heretic.config.schema import settings_of, values_as_before
from heretic.errors import RunError
from heretic.runs.folder import slug
from heretic.runs.listing import run_folders
from heretic.runs.manifest import RunManifest

_SHORT = 40
"""Values up to this many characters are shown, others are only named."""


@dataclass(frozen=True, slots=True)
class NearestRun:
    """A run that is not the one that was looked for.

    Attributes:
        differences: What differs, one text for each setting.
    """

    path: Path
    differences: tuple[str, ...]

    def told(self) -> str:
        """The folder and what differs, as a part of a sentence."""
        return f"{self.path}, which differs in {', '.join(self.differences)}"


def nearest_run(
    checkpoint_dir: Path, fingerprint: Mapping[str, Any], seed: int, settings: Mapping[str, Any]
) -> NearestRun | None:
    """The run of the same model with the fewest differences; of several the one used last.

    Args:
        fingerprint: What the runs of these settings are recognised by.
        seed: The seed that a new run would have.
        settings: All settings, which say which prompt sets differ.

    Returns:
        None if there is no readable run of a model of this name or content.
    """
    found = []
    for folder in run_folders(checkpoint_dir):
        with suppress(RunError):  # a run that cannot be read cannot be continued
            manifest = folder.read_manifest()
            if manifest is not None and _same_model(manifest, fingerprint, settings):
                differences = tuple(_differences(manifest, fingerprint, seed, settings))
                found.append(NearestRun(folder.path, differences))
    return min(found, key=lambda run: len(run.differences), default=None)


def _same_model(
    manifest: RunManifest, fingerprint: Mapping[str, Any], settings: Mapping[str, Any]
) -> bool:
    same_name = slug(manifest.model) == slug(str(settings["model"]))
    return same_name or manifest.fingerprint.get("model") == fingerprint["model"]


def _differences(
    manifest: RunManifest, fingerprint: Mapping[str, Any], seed: int, settings: Mapping[str, Any]
) -> Iterator[str]:
    """What differs, in the order of the settings."""
    unsaid = values_as_before()
    before, now = {**unsaid, **manifest.fingerprint}, {**unsaid, **fingerprint}
    names = [name for name in dict.fromkeys([*now, *before]) if before.get(name) != now.get(name)]
    for name in names:
        if name == "prompts":
            yield from _prompt_sets(manifest.settings, settings)
        elif name == "model":
            yield "the model's files"
        else:
            yield _change(name, before.get(name), now.get(name))
    if manifest.seed != seed and (not names or settings["seed"] is not None):
        yield _change("seed", manifest.seed, seed)


def _prompt_sets(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    tables = [found.name for found in settings_of() if found.kind == "table" and found.scores]
    changed = [name for name in tables if _said(before.get(name)) != _said(now.get(name))]
    yield from changed or ["the text of the prompts"]


def _said(table: Any) -> Any:
    """A prompt set without the keys that are unset: runs lack those that came later."""
    if not isinstance(table, Mapping):
        return table
    return {key: value for key, value in table.items() if value is not None}


def _change(name: str, before: Any, now: Any) -> str:
    shown = [_shown(value) for value in (before, now)]
    if any(len(text) > _SHORT for text in shown):
        return name
    return f"{name} ({shown[0]} there, {shown[1]} now)"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "unset" if value is None else repr(value) if value == "" else str(value)
