"""What GGUF files of a folder are made and scored with: settings, original, what was recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.compare.side import open_side
from heretic.config.settings import Settings
from heretic.config.tables import SCORERS, is_own_plugin
from heretic.errors import ExportError, HereticError, SettingsError
from heretic.events import Notice, Reporter
from heretic.export.documents.places import found_again
from heretic.export.documents.reproduction import Reproduction
from heretic.export.files import REPRODUCTION
from heretic.export.reproduce import restored_settings
from heretic.system.adapters import find_adapter
from heretic.system.hub import base_folder, display_name, is_local

if TYPE_CHECKING:
    from heretic.pipeline.run import Session

USED = ("good_prompts", "good_evaluation_prompts", "bad_evaluation_prompts")
"""The sets that are read; a reproduction file names more."""

_JUDGES = {SCORERS["llm_judge"], SCORERS["classifier_judge"]}


@dataclass(frozen=True, slots=True)
class GGUFSource:
    """A saved model, and how it is scored.

    Attributes:
        folder: The model.
        settings: Those of its run, or the user's; `model` is the folder.
        recorded: Its reproduction file; None without one.
        original: Folder of the original's files; None if there is none.
        original_name: As it may be published.
        original_settings: The settings with the original as the model.
        not_scored: Names of recorded scorers that are not loaded: judges, and code of others.
    """

    folder: Path
    settings: Settings
    recorded: Reproduction | None
    original: Path | None
    original_name: str | None
    original_settings: Settings | None
    not_scored: tuple[str, ...] = ()


def gguf_source(
    folder: Path,
    load: Callable[[], Settings],
    overrides: Mapping[str, Any],
    reporter: Reporter,
    *,
    against: str | None = None,
    against_commit: str | None = None,
    places: Sequence[Path] = (),
) -> GGUFSource:
    """Find out what a folder's files are scored with.

    Args:
        load: The user's settings, with this folder as the model; for a folder that has no
            reproduction file.
        overrides: The user's settings alone, which take precedence over the reproduction file's.
        against: Hub id or folder of the original; by default the one that the file names.
        places: Further folders in which local files of the reproduction file are looked for.

    Raises:
        ExportError: The reproduction file is damaged, or prompts that it names are not found.
        ModelError: The original that the user names is not there.
        SettingsError: The user's settings are not valid.
    """
    path = folder / REPRODUCTION
    left: tuple[str, ...] = ()
    if not path.is_file():
        settings, recorded = load(), None
    else:
        recorded, left = _without_foreign(Reproduction.read(path))
        settings = _recorded_settings(recorded, overrides, path, places)
    own = settings.replaced(model=str(folder), model_commit=None, preset="none")
    source = GGUFSource(folder, own, recorded, None, None, None, left)
    if against is not None:
        named = settings.replaced(model=against, model_commit=against_commit, preset="none")
        return _with_original(source, named)
    if recorded is None:
        return source
    try:
        return _with_original(source, _as_recorded(settings, recorded, overrides, path, places))
    except HereticError as error:
        reporter.emit(
            Notice(
                f"The original is not compared with: {error.message} Name it by --against MODEL.",
                "warning",
            )
        )
        return source


def source_of_session(session: Session, folder: Path) -> GGUFSource:
    """The same of a trial that was saved just now."""
    settings, model = session.settings, session.model
    changes: dict[str, Any] = {
        "response_prefix": model.response_prefix,
        "dtypes": [str(model.dtype).removeprefix("torch.")],
        "quantization": "none",
    }
    settings = settings.replaced(**changes)
    own = (settings.model, settings.model_commit)
    base = None if find_adapter(*own) is not None else base_folder(*own)
    return GGUFSource(
        folder,
        settings.replaced(model=str(folder), model_commit=None, preset="none"),
        Reproduction.read(folder / REPRODUCTION),
        base,
        None if base is None else display_name(settings.model),
        None if base is None else settings,
    )


def beside(folder: Path) -> Path:
    """The default place of a folder's GGUF files: `FOLDER-gguf`."""
    whole = folder.absolute()
    return folder.with_name(f"{whole.name}-gguf") if folder.name else Path(f"../{whole.name}-gguf")


def _without_foreign(recorded: Reproduction) -> tuple[Reproduction, tuple[str, ...]]:
    """A reproduction file without scorers that run code, send replies away, or load a model."""
    rows = recorded.settings.get("scorers", [])
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ExportError("The scorers in the reproduction file are not a list of tables.")
    plugins = [SCORERS.get(str(row.get("plugin")), str(row.get("plugin"))) for row in rows]
    own = [is_own_plugin(plugin) and plugin not in _JUDGES for plugin in plugins]
    left = tuple(str(row.get("name")) for row, kept in zip(rows, own, strict=True) if not kept)
    if not left:
        return recorded, ()
    kept_rows = [row for row, kept in zip(rows, own, strict=True) if kept]
    options = recorded.settings.get("scorer", {})
    tables = {name: table for name, table in options.items() if name not in left}
    settings = {**recorded.settings, "scorers": kept_rows, "scorer": tables}
    if not kept_rows:
        del settings["scorers"]  # then those of the default
    return replace(recorded, settings=settings), left


def _recorded_settings(
    recorded: Reproduction, overrides: Mapping[str, Any], path: Path, places: Sequence[Path]
) -> Settings:
    """The settings of the file, with the prompts that are read found on this machine."""
    needed = {name: recorded.settings[name] for name in USED if name in recorded.settings}
    found = _found(needed, recorded, overrides, path, places)
    there = {**recorded.settings, **found}
    return restored_settings(replace(recorded, settings=there), overrides)


def _as_recorded(
    settings: Settings,
    recorded: Reproduction,
    overrides: Mapping[str, Any],
    path: Path,
    places: Sequence[Path],
) -> Settings:
    """The settings with the original that the file names.

    Raises:
        ExportError: It is not found on this machine.
    """
    named = {"model": recorded.settings.get("model", "")}
    found = _found(named, recorded, overrides, path, places)
    return settings.replaced(model=found["model"])


def _found(
    values: Mapping[str, Any],
    recorded: Reproduction,
    overrides: Mapping[str, Any],
    path: Path,
    places: Sequence[Path],
) -> dict[str, Any]:
    """Settings whose local paths are found again, near the file or in one of the places.

    Raises:
        ExportError: One is not found.
    """
    error: ExportError | None = None
    for near in (path.absolute().parent, *places):
        try:
            return found_again(values, recorded.places, overrides, near)
        except ExportError as missing:
            error = error or missing
    assert error is not None
    raise error


def _with_original(source: GGUFSource, settings: Settings) -> GGUFSource:
    """The source with its original.

    Raises:
        ModelError: The original is not on this machine as safetensors files.
        SettingsError: It is the model itself, or an adapter.
    """
    side = open_side(settings.model, settings.model_commit)
    if side.base is not None:
        raise SettingsError(f"The original, {settings.model}, is an adapter.")
    if side.folder.resolve() == source.folder.resolve():
        raise SettingsError(
            f"{settings.model} is the model itself.", remedy="Name its original, or none."
        )
    name = display_name(settings.model)
    where = str(side.folder) if is_local(settings.model) else settings.model
    return replace(
        source,
        original=side.folder,
        original_name=name,
        original_settings=settings.replaced(model=where),
    )
