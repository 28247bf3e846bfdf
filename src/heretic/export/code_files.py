"""The Python files that a model's configuration refers to, found without running them."""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from heretic.errors import HereticError
from heretic.system.documents import read_json, read_text


def referenced_code(base: Path, configurations: Iterable[str]) -> list[str]:
    """Python files in a model's folder that its configurations name, and all that these import.

    Args:
        configurations: Names of JSON files in `base`; missing and damaged ones name nothing.

    Returns:
        Paths relative to `base`, in posix form, sorted. None leaves the folder by its name; a file
        may still be a link.
    """
    todo = [name for file in configurations for name in _named(read_table(base / file))]
    found: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in found and (base / name).is_file():
            found.add(name)
            todo += _imported(base, name)
    return sorted(found)


def read_table(path: Path) -> dict[str, Any]:
    """A JSON object of any origin; empty if the file is missing, damaged or something else."""
    try:
        data = read_json(path, strict=False)
    except HereticError:
        return {}
    return data if isinstance(data, dict) else {}


def _named(configuration: Mapping[str, Any]) -> Iterator[str]:
    """Files named as `module.Class` in `auto_map` and in the pipelines of a configuration.

    `org/repository--module.Class` names a file elsewhere.
    """
    references = _texts(configuration.get("auto_map"))
    pipelines = configuration.get("custom_pipelines")
    if isinstance(pipelines, Mapping):
        references += [
            reference
            for pipeline in pipelines.values()
            if isinstance(pipeline, Mapping)
            for reference in _texts(pipeline.get("impl"))
        ]
    for reference in references:
        module = reference.rpartition(".")[0]
        if module and "--" not in module and _stays(f"{module}.py"):
            yield f"{module}.py"


def _texts(value: Any) -> list[str]:
    """All texts in a value of nested tables and lists."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []


def _imported(base: Path, name: str) -> Iterator[str]:
    """Files that a Python file imports relative to itself."""
    try:
        tree = ast.parse(read_text(base / name))
    except (HereticError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = PurePosixPath(name).parent.joinpath(*[".."] * (node.level - 1))
            module = folder.joinpath(*(node.module or "").split("."))
            inner = [alias.name for alias in node.names]
            for found in (module, module / "__init__", *(module / part for part in inner)):
                file = f"{posixpath.normpath(found)}.py"
                if _stays(file):
                    yield file


def _stays(name: str) -> bool:
    """Whether a relative path stays in its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name
