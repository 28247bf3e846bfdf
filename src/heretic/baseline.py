"""The unedited model's outputs on disk, so that taking up a run need not compute them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from heretic.atomic import write_atomic
from heretic.prompts import Prompt
from heretic.runs import GOES_ON
from heretic.scorers import Outputs, PromptSet

_KEY, _RESPONSES = "key", "responses"


@dataclass(frozen=True, slots=True)
class BaselineFile:
    """Where a baseline is kept.

    Attributes:
        path: A safetensors file: first-token logits by prompt set, replies in its metadata.
        key: Digest of all that the outputs depend on: model, prompts, settings, machine, versions.
    """

    path: Path
    key: str

    def read(self, prompts: Mapping[PromptSet, Sequence[Prompt]]) -> Outputs | None:
        """The outputs kept under this key; None if there are none, or they cannot be read."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get(_KEY) != self.key:
                    return None
                logits = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
                responses = json.loads(metadata[_RESPONSES])
        except (OSError, SafetensorError, KeyError, ValueError):
            return None  # it is a cache: what cannot be read is computed
        return Outputs(prompts=prompts, logits=logits, responses=responses)

    def write(self, outputs: Outputs) -> None:
        """Keep outputs under this key.

        Raises:
            RunError: The file cannot be written.
        """
        tensors = {str(name): _smallest(rows) for name, rows in outputs.logits.items()}
        responses = {name: list(texts) for name, texts in outputs.responses.items()}
        metadata = {_KEY: self.key, _RESPONSES: json.dumps(responses)}
        write_atomic(self.path, save(tensors, metadata), remedy=GOES_ON)


def _smallest(logits: Tensor) -> Tensor:
    """The same numbers in half the space, where they came from half precision."""
    for dtype in (torch.bfloat16, torch.float16):
        half = logits.to(dtype)
        if torch.equal(half.float(), logits):
            return half.contiguous()
    return logits.contiguous()
