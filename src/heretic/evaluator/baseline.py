"""The unedited model's outputs on disk, so that a resumed run need not compute them again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from heretic.errors import RunError
from heretic.model.outputs import Continuation, Endings, Reading, Reference
from heretic.prompts import Prompt
from heretic.runs.folder import RunFolder
from heretic.scorers import Outputs, PromptSet

_log = logging.getLogger(__name__)
_KEY, _TEXTS = "key", "texts"
_RECORDS = {
    "continuations": {"divergence": "divergence", "agreement": "agreement"},
    "readings": {"surprise": "nll", "tokens": "tokens"},
    "endings": {"logprobs": "logprobs", "tokens": "tokens", "greedy": "greedy"},
    "references": {"tokens": "tokens", "logprobs": "logprobs"},
}
"""Tensors of each kind of record in `Outputs`: name in the file to field of the record."""


@dataclass(frozen=True, slots=True)
class BaselineFile:
    """Where a baseline is kept.

    Attributes:
        path: A safetensors file: tensors by kind and prompt set, texts in its metadata.
        key: Digest of all that the outputs depend on: model, prompts, settings, machine, versions.
    """

    path: Path
    key: str

    def read(self, prompts: Mapping[PromptSet, Sequence[Prompt]]) -> Outputs | None:
        """The outputs stored under this key; None if there are none or they cannot be read."""
        try:
            if RunFolder(self.path.parent).read_file(self.path.name) is None:
                return None
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get(_KEY) != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                texts = json.loads(metadata[_TEXTS])
            return _outputs(prompts, tensors, texts)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError):
            return None  # it is a cache: what cannot be read is computed
        except RunError as error:
            _log.warning("The original model is scored again: %s", error.message)
            return None

    def write(self, outputs: Outputs) -> None:
        """Store outputs under this key.

        Raises:
            RunError: The file cannot be written.
        """
        metadata = {_KEY: self.key, _TEXTS: json.dumps(_texts(outputs))}
        data = save(dict(_tensors(outputs)), metadata)
        RunFolder(self.path.parent).write_file(self.path.name, data)


def to_content(outputs: Outputs) -> bytes:
    """Outputs for another process, which has the prompts: `from_content` reads them."""
    texts = np.frombuffer(json.dumps(_texts(outputs)).encode(), dtype=np.uint8)
    return save({**dict(_tensors(outputs)), _TEXTS: torch.from_numpy(texts.copy())})


def from_content(prompts: Mapping[PromptSet, Sequence[Prompt]], content: bytes) -> Outputs:
    """What `to_content` was given.

    Args:
        prompts: The evaluation prompts.
    """
    tensors = load(content)
    texts = json.loads(tensors.pop(_TEXTS).numpy().tobytes())
    return _outputs(prompts, tensors, texts)


def _texts(outputs: Outputs) -> dict[str, dict[PromptSet, Any]]:
    return {
        "responses": {name: list(rows) for name, rows in outputs.responses.items()},
        "replies": {name: found.replies for name, found in outputs.references.items()},
    }


def _tensors(outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    """All tensors, each with its name `kind/part/set`."""
    for name, logits in outputs.logits.items():
        yield f"logits/raw/{name}", _smallest(logits)
    for kind, parts in _RECORDS.items():
        for name, record in getattr(outputs, kind).items():
            for part, field in parts.items():
                yield f"{kind}/{part}/{name}", getattr(record, field).contiguous()


def _outputs(
    prompts: Mapping[PromptSet, Sequence[Prompt]],
    tensors: Mapping[str, Tensor],
    texts: Mapping[str, Mapping[PromptSet, Any]],
) -> Outputs:
    by_kind: dict[str, dict[PromptSet, dict[str, Tensor]]] = {}
    for path, tensor in tensors.items():
        kind, part, name = path.split("/", 2)
        field = _RECORDS.get(kind, {}).get(part, part)
        by_kind.setdefault(kind, {}).setdefault(name, {})[field] = tensor
    read = {kind: by_kind.get(kind, {}) for kind in ("logits", *_RECORDS)}
    replies = {name: tuple(map(tuple, rows)) for name, rows in texts["replies"].items()}
    return Outputs(
        prompts=prompts,
        logits={name: parts["raw"].float() for name, parts in read["logits"].items()},
        responses=texts["responses"],
        continuations={name: Continuation(**p) for name, p in read["continuations"].items()},
        readings={name: Reading(**parts) for name, parts in read["readings"].items()},
        endings={name: Endings(**parts) for name, parts in read["endings"].items()},
        references={
            name: Reference(replies[name], **parts) for name, parts in read["references"].items()
        },
    )


def _smallest(logits: Tensor) -> Tensor:
    """Logits in a 16-bit dtype if that loses nothing, otherwise unchanged."""
    for dtype in (torch.bfloat16, torch.float16):
        half = logits.to(dtype)
        if torch.equal(half.float(), logits):
            return half.contiguous()
    return logits.contiguous()
