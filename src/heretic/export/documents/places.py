"""Local paths in what is published: their last part and a digest stand for them.

A path tells a user's name and how a machine is arranged, and means nothing on another machine. By
the digest the same content is found again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from heretic.config.schema import option_name
from heretic.errors import ExportError, HereticError
from heretic.export.files import relative_files, sha256_file
from heretic.system.adapters import model_identity
from heretic.system.files import expanded
from heretic.system.hub import display_name, is_local

LONGEST_PATH = 4096
"""Characters; a longer text is not a path."""

NAMES = frozenset({"model", "dataset", "behavior", "preset", "evaluate_model"})
"""Settings and keys whose value is a path, or the name of something elsewhere."""

TEXTS = frozenset({"system_prompt", "response_prefix", "prefix", "suffix", "refusal_markers"})
"""Settings and keys whose value is a text that may look like a path."""

Key = tuple[str, ...]

_OF_TABLE = 2
"""Parts of the key of a data set in a table; in a list its number comes between them."""


def shortened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-ready settings with every local path in them cut to its last part."""
    short: dict[str, Any] = _shortened(dict(settings), "")
    return short


def digests(settings: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the local model and prompts that settings name, by dotted key."""
    return {
        ".".join(key): digest
        for key, name in _places(settings)
        if is_local(name) and (digest := _digest(key, name)) is not None
    }


def found_again(
    settings: Mapping[str, Any],
    recorded: Mapping[str, str],
    overrides: Mapping[str, Any],
    near: Path,
) -> dict[str, Any]:
    """Settings in which names of local files and folders are paths again.

    They are looked for by name and digest beside `near`, in it, and in the working directory.

    Args:
        settings: From a reproduction file.
        recorded: What `digests` gave when it was written.
        overrides: What the user sets; a place that is named there is not looked for.
        near: Folder of the reproduction file.

    Raises:
        ExportError: One is neither found nor named by the user.
    """
    result: Any = settings
    missing = []
    for key, name in _places(settings):
        digest = recorded.get(".".join(key))
        said = _value(overrides, (key[0], *key[-1:]) if len(key) > 1 else key)
        if digest is None or said is not None:
            continue
        candidates = (folder / name for folder in (near.parent, near, Path()))
        path = next((path for path in candidates if _digest(key, str(path)) == digest), None)
        if path is None:
            missing.append((key, name))
        else:
            result = _with(result, key, str(path))
    if missing:
        raise _not_here(missing)
    return dict(result)


def _not_here(missing: Sequence[tuple[Key, str]]) -> ExportError:
    named = ", ".join(f"{'.'.join(key)} {name}" for key, name in missing)
    options = " ".join(f"{option_name(*key)} PATH" for key, _ in missing if len(key) <= _OF_TABLE)
    listed = [name for key, name in missing if len(key) > _OF_TABLE]
    ways = [f"say where they are: {options}"] if options else []
    ways += [f"put {', '.join(listed)} beside the reproduction file"] if listed else []
    remedy = " and ".join(ways)
    return ExportError(
        f"The reproduction file was made with local files that are not here as they were: {named}.",
        remedy=f"{remedy[:1].upper()}{remedy[1:]}.",
    )


def _places(settings: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """The settings that name what is read, with their values."""
    for name, value in settings.items():
        if name == "model" and isinstance(value, str):
            yield (name,), value
        elif name.endswith("_prompts"):
            yield from _data_sets((name,), value)


def _data_sets(above: Key, value: Any) -> Iterator[tuple[Key, str]]:
    """The data sets of a prompt set; those of a list are numbered from 0."""
    if isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _data_sets((*above, str(number)), part)
    elif isinstance(_value(value, ["dataset"]), str):
        yield (*above, "dataset"), value["dataset"]


def _digest(key: Key, name: str) -> str | None:
    """Digest of a local file or folder; None if it is missing or cannot be read."""
    path = expanded(name)
    try:
        if not path.exists():
            return None
        if key == ("model",):
            return model_identity(str(path) if path.is_absolute() else f"./{path}")
        if path.is_file():
            return f"sha256:{sha256_file(path)}"
        total = hashlib.sha256()
        for file in relative_files(path):
            total.update(f"{file}\0{sha256_file(path / file)}\0".encode())
        return f"sha256:{total.hexdigest()}"
    except (OSError, ValueError, HereticError):
        return None


def _value(table: Any, key: Iterable[str]) -> Any:
    for part in key:
        table = table.get(part) if isinstance(table, Mapping) else None
    return table


def _with(tree: Any, key: Key, value: Any) -> Any:
    """A copy of tables and lists with another value at `key`, which exists."""
    if not key:
        return value
    first, *rest = key
    if isinstance(tree, Mapping):
        return {**tree, first: _with(tree[first], tuple(rest), value)}
    place = int(first)
    return [*tree[:place], _with(tree[place], tuple(rest), value), *tree[place + 1 :]]


def _shortened(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _shortened(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(item, key) for item in value]
    if not isinstance(value, str) or len(value) > LONGEST_PATH or key in TEXTS:
        return value
    if key in NAMES:
        return display_name(value) if is_local(value) else value
    if key == "plugin":
        place, colon, class_name = value.rpartition(":")
        return f"{Path(place).name}{colon}{class_name}"
    path = Path(value)
    # A word such as "/think" is not a path.
    is_path = value.startswith("~/") or (path.is_absolute() and len(path.parts) > 2)
    return path.name if is_path and "\n" not in value else value
