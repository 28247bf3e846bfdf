"""A copy of a model's folder for llama.cpp's converter, without the code that came with the model.

The converter loads the tokenizers of some architectures with remote code switched on, and cannot be
told otherwise. Code runs only where it is found, so a copy without `*.py` files, and without the
keys that name code, is safe to hand over.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from heretic.errors import ExportError, ModelError
from heretic.model.loading import load_tokenizer
from heretic.model.source import ModelSource
from heretic.system.documents import parse_json

NAMES_CODE = "auto_map"
"""The key in configurations that names classes in code beside them, or in another repository."""

_CODE = {".py", ".pyc", ".pyi", ".so", ".pyd"}


@contextmanager
def converter_copy(folder: Path, beside: Path, *, trusted: bool = False) -> Iterator[Path]:
    """Yield a folder with a model's files, as links, for the converter to read.

    Args:
        folder: A model, or an adapter.
        beside: Folder on whose disk the copy is made, where links cost nothing.
        trusted: Whether the user lets code run that comes with the model. It is copied then.

    Raises:
        ExportError: A file cannot be copied.
    """
    try:
        with TemporaryDirectory(prefix=".heretic-gguf-", dir=beside) as place:
            staged = Path(place) / folder.resolve().name  # the converter names the model by it
            staged.mkdir()
            for path in sorted(folder.iterdir()):
                if path.is_file() and (trusted or path.suffix.lower() not in _CODE):
                    _stage(path, staged / path.name, trusted)
            yield staged
    except OSError as error:
        raise ExportError(
            f"{folder} cannot be copied for llama.cpp's converter: {error.strerror or error}.",
            remedy="Check the permissions of that folder, and those of the folder to write to.",
        ) from error


def check_tokenizer_without_code(source: ModelSource) -> None:
    """Refuse a model whose tokenizer works only with code that nobody has allowed to run.

    Raises:
        ExportError: The tokenizer needs code that comes with it.
        ModelError: The model has no tokenizer that can be used.
    """
    if source.trust_remote_code:
        return
    try:
        load_tokenizer(source)
    except ModelError as error:
        folder = Path(source.model)
        if not any(map(_may_name_code, folder.glob("*.json"))):
            raise
        raise ExportError(
            f"The tokenizer of {source.model} works only with code that comes with it, and the "
            "converter would run that code.",
            remedy="Read it, then pass --trust-remote-code.",
        ) from error


def _stage(path: Path, copy: Path, trusted: bool) -> None:
    """A link to a file; of a configuration that names code, a copy without these keys.

    A file that may name code and cannot be read as JSON is left out.
    """
    if not trusted and path.suffix.lower() == ".json" and _may_name_code(path):
        try:
            data = parse_json(path.read_text(encoding="utf-8"), strict=False)
        except ValueError:
            return
        copy.write_text(json.dumps(_without_code(data)), encoding="utf-8")
        return
    source = path.resolve()  # of the Hub's cache, whose files are links
    with suppress(OSError):
        os.link(source, copy)
        return
    with suppress(OSError, NotImplementedError):
        copy.symlink_to(source)
        return
    shutil.copyfile(source, copy)


def _may_name_code(path: Path) -> bool:
    """Whether a JSON file may have the key that names code; escapes may hide it."""
    content = path.read_bytes()
    return NAMES_CODE.encode() in content or b"\\u" in content


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_code(item) for key, item in value.items() if key != NAMES_CODE}
    return [_without_code(item) for item in value] if isinstance(value, list) else value
