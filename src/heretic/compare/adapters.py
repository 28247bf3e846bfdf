"""What an adapter in PEFT's file format adds to the tensors of its base: LoRA and DoRA.

W' = W + s B A (LoRA: Hu et al. 2021, arXiv 2106.09685), s = alpha / r, or alpha / sqrt(r) with
`use_rslora`; DoRA (Liu et al. 2024, arXiv 2402.09353) gives each row the norm that it stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heretic.compare.tensors import can_read, matrices
from heretic.errors import ModelError
from heretic.export.adapter import PREFIX, WEIGHTS
from heretic.export.safetensors.checkpoint import Checkpoint, Entry, read_header
from heretic.system.adapters import ADAPTER_CONFIG
from heretic.system.documents import read_json

PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
"""Endings of the tensors that are understood, and the attribute of `AdapterLayer`."""

REFUSED = ("alpha_pattern", "modules_to_save", "megatron_config", "trainable_token_indices")
"""Keys of the configuration that change what is added in ways that are not followed here."""


@dataclass(frozen=True, slots=True)
class AdapterLayer:
    """What an adapter adds to one tensor.

    Attributes:
        a: [k, d_in], float32.
        b: [d_out, k], float32.
        scaling: Factor of b a.
        magnitude: Norms of the rows of the result, [d_out]; None for LoRA.
        transposed: Whether the base stores [d_in, d_out].
    """

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None
    transposed: bool = False

    @property
    def rank(self) -> int:
        """Number of rows of `a`."""
        return len(self.a)

    def added_to(self, weight: Tensor) -> Tensor:
        """The weight with the adapter merged, float32, stored as the base stores it.

        Args:
            weight: float32.
        """
        plain = weight.T if self.transposed else weight
        edited = torch.addmm(plain, self.b, self.a, alpha=self.scaling)
        if self.magnitude is not None:
            norms = torch.linalg.vector_norm(edited, dim=1)
            edited = edited * (self.magnitude.flatten() / norms).unsqueeze(1)
        return edited.T.contiguous() if self.transposed else edited


def read_layers(folder: Path, checkpoint: Checkpoint) -> dict[str, AdapterLayer]:
    """What the adapter in a folder adds, by the name of the base's tensor.

    Raises:
        ModelError: It is none of LoRA or DoRA, or does not fit the base.
        ExportError: A file is damaged.
    """
    config = read_json(folder / ADAPTER_CONFIG, kind=ModelError)
    config = config if isinstance(config, dict) else {}
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"The adapter {folder} has no {WEIGHTS}.", remedy="Save it anew.")
    kind = str(config.get("peft_type") or "").upper()
    refused = [key for key in REFUSED if config.get(key)]
    if kind != "LORA" or refused:
        raise ModelError(
            f"The adapter {folder} is of a kind that is not compared "
            f"({', '.join(refused) or kind or 'unknown'}).",
            remedy="Merge it into its base, and compare the result.",
        )
    groups: dict[str, dict[str, Tensor]] = {}
    for entry in read_header(folder / WEIGHTS):
        module, part = _named(entry, folder)
        groups.setdefault(module, {})[part] = next(matrices(entry)).float()
    return {
        _tensor_of(module, checkpoint, folder): _layer(module, parts, config, folder)
        for module, parts in groups.items()
    }


def _named(entry: Entry, folder: Path) -> tuple[str, str]:
    """The module that a tensor of an adapter belongs to, and which part of it it is."""
    for ending, part in PARTS.items():
        if entry.key.endswith(f".{ending}") and can_read(entry):
            return entry.key.removesuffix(f".{ending}").removeprefix(PREFIX), part
    raise ModelError(
        f"The adapter {folder} holds {entry.key} ({entry.dtype}), which is not understood.",
        remedy="Merge it into its base, and compare the result.",
    )


def _layer(
    module: str, parts: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path
) -> AdapterLayer:
    if not {"a", "b"} <= parts.keys():
        raise ModelError(
            f"The adapter {folder} holds only a part of what it adds to {module}.",
            remedy="Save it anew.",
        )
    rank, alpha = len(parts["a"]), float(config.get("lora_alpha") or 8)
    scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return AdapterLayer(**parts, scaling=scaling, transposed=bool(config.get("fan_in_fan_out")))


def _tensor_of(module: str, checkpoint: Checkpoint, folder: Path) -> str:
    """The tensor that a module's weight is loaded from: of that name, or with another beginning."""
    parts = f"{module}.weight".split(".")
    for start in range(len(parts) - 1):
        name = ".".join(parts[start:])
        if name in checkpoint.tensors:
            return name
        found = [key for key in checkpoint.tensors if key.endswith(f".{name}")]
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise ModelError(
        f"The adapter {folder} adds to {module}, which {checkpoint.folder} does not have.",
        remedy="Check base_model_name_or_path in adapter_config.json.",
    )
