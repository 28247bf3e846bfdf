"""Adapters, and the base models that their configurations name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heretic.errors import ModelError
from heretic.system.documents import parse_json, read_json
from heretic.system.files import expanded
from heretic.system.hub import content_identity, gguf_parts, hub_text, is_local

ADAPTER_CONFIG = "adapter_config.json"

WHOLE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weight files of models that are more than an adapter."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's configuration.

    Attributes:
        place: Folder or Hub id of the adapter.
        revision: Its revision on the Hub.
        base: Hub id, folder or GGUF file of the model that it was made for.
        base_revision: Revision of that model on the Hub.
        kind: PEFT's name of its method, such as LORA.
        task: PEFT's name of what it was trained for, such as CAUSAL_LM; empty if unknown.
    """

    place: str
    revision: str | None
    base: str
    base_revision: str | None
    kind: str
    task: str


def find_adapter(name: str, revision: str | None = None) -> Adapter | None:
    """The adapter of that name; None if it is a model of its own, or nothing.

    Args:
        name: Hub id or folder.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ModelError: Its configuration is damaged or names no base model; or the folder holds both an
            adapter and a whole model.
    """
    if not name or gguf_parts(name) is not None:
        return None
    if is_local(name):
        folder = expanded(name)
        file = folder / ADAPTER_CONFIG
        if not file.is_file():
            return None
        whole = next((weights for weights in WHOLE if (folder / weights).is_file()), None)
        if whole is not None:
            raise ModelError(
                f"{folder} holds an adapter ({ADAPTER_CONFIG}) and a whole model ({whole}).",
                remedy="Move one of them into a folder of its own.",
            )
        return _adapter(str(folder), None, str(file), read_json(file, kind=ModelError))
    config = hub_text(name, "config.json", revision)
    if config:
        return None  # a whole model, whatever lies beside it
    text = hub_text(name, ADAPTER_CONFIG, revision, ask=config is None)
    if not text:
        return None
    what = f"{ADAPTER_CONFIG} of {name}"
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ModelError(f"{what} is not valid JSON: {error}.") from error
    return _adapter(name, revision, what, content)


def _adapter(place: str, revision: str | None, what: str, config: Any) -> Adapter:
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{what} names no base model.", remedy="Set base_model_name_or_path in it."
        )
    beside = expanded(place) / base
    if is_local(place) and not Path(base).is_absolute() and beside.exists():
        base = str(beside)
    at = config.get("revision")
    return Adapter(
        place=place,
        revision=revision,
        base=base,
        base_revision=at if isinstance(at, str) and not is_local(base) else None,
        kind=str(config.get("peft_type") or "").upper(),
        task=str(config.get("task_type") or "").upper(),
    )


def model_identity(name: str, revision: str | None = None) -> str:
    """Identify a model by its content, as `content_identity`; an adapter's base counts as well.

    The base of an adapter on the Hub does not count: its commit stands in the adapter's files, or
    nowhere.

    Raises:
        ModelError: As `find_adapter`.
    """
    own = content_identity(name, revision)
    adapter = find_adapter(name, revision) if own.startswith("sha256:") else None
    if adapter is None:
        return own
    base = content_identity(adapter.base, adapter.base_revision)
    return f"sha256:{hashlib.sha256(f'{own} {base}'.encode()).hexdigest()}"
