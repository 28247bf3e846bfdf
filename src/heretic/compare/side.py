"""A checkpoint to compare: a folder or a Hub id, a whole model or an adapter on its base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from heretic.compare.adapters import AdapterLayer, read_layers
from heretic.compare.tensors import can_read, matrices
from heretic.errors import ModelError
from heretic.export.safetensors.checkpoint import Checkpoint, read_checkpoint
from heretic.system.adapters import find_adapter
from heretic.system.hub import base_folder, gguf_parts, is_local

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md")
"""Files of a model on the Hub that are downloaded if they are not in the cache."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of two checkpoints.

    Attributes:
        name: As the user gave it.
        folder: Its own files; for an adapter, the adapter's.
        checkpoint: The weight files; for an adapter, those of its base.
        layers: What an adapter adds, by the tensor that it is added to.
        base: Name of the adapter's base; None for a whole model.
    """

    name: str
    folder: Path
    checkpoint: Checkpoint
    layers: Mapping[str, AdapterLayer] = field(default_factory=dict)
    base: str | None = None

    @property
    def quantization(self) -> str | None:
        """Name of the quantisation of the weights; None if they are not quantised."""
        return self.checkpoint.quantization

    @property
    def places(self) -> tuple[Path, ...]:
        """Folders with configuration, tokenizer and template.

        What the first lacks stands in the second, that of an adapter's base.
        """
        return tuple(dict.fromkeys((self.folder, self.checkpoint.folder)))

    def can_read(self, key: str) -> bool:
        """Whether a tensor holds unquantised floating-point numbers of at least 16 bits."""
        return can_read(self.checkpoint.tensors[key])

    def dtype(self, key: str) -> str:
        """The dtype of a tensor, as safetensors names it; of one with an adapter, F32."""
        return "F32" if key in self.layers else self.checkpoint.tensors[key].dtype

    def matrices(self, key: str) -> Iterator[Tensor]:
        """The matrices of a tensor, as `tensors.matrices`, with what an adapter adds (float32)."""
        layer = self.layers.get(key)
        for matrix in matrices(self.checkpoint.tensors[key]):
            yield matrix if layer is None else layer.added_to(matrix.to(torch.float32))


def open_side(name: str, revision: str | None = None, *, download: bool = True) -> Side:
    """Find the files of a model or an adapter, and read their headers.

    Args:
        name: Folder or Hub id.
        revision: Branch, tag or commit on the Hub.
        download: Whether files that the Hub's cache lacks are downloaded.

    Raises:
        ModelError: There is no such model here or on the Hub, or it has no safetensors files; or an
            adapter cannot be put on its base.
        ExportError: A file is damaged.
    """
    adapter = find_adapter(name, revision)
    if adapter is None:
        folder = _folder(name, revision, download=download)
        return Side(name, folder, _checkpoint(name, folder))
    own = _folder(name, revision, download=download, adapter=True)
    folder = _folder(adapter.base, adapter.base_revision, download=download)
    checkpoint = _checkpoint(adapter.base, folder)
    return Side(name, own, checkpoint, read_layers(own, checkpoint), adapter.base)


def _checkpoint(name: str, folder: Path) -> Checkpoint:
    found = read_checkpoint(folder)
    if found is None:
        raise ModelError(
            f"{name} holds no whole model in safetensors files.",
            remedy="Pickles and GGUF files are not compared; load such a model and save it first.",
        )
    return found


def _folder(name: str, revision: str | None, *, download: bool, adapter: bool = False) -> Path:
    if gguf_parts(name) is not None:
        raise ModelError(
            f"{name} is a GGUF file, whose tensors are not compared.",
            remedy="Name the model that it was made from.",
        )
    folder = base_folder(name, revision)
    if is_local(name):
        if folder is None:
            raise ModelError(f"{name} is not a folder.", remedy="Name a folder or a Hub id.")
        return folder
    if folder is not None and not adapter and read_checkpoint(folder) is not None:
        return folder
    if not download:
        raise ModelError(f"{name} is not on this machine as safetensors files.")
    return _downloaded(name, revision)


def _downloaded(name: str, revision: str | None) -> Path:
    """The files of a model on the Hub, downloaded where the cache lacks them."""
    from huggingface_hub import snapshot_download

    from heretic.model.loading import quiet

    try:
        with quiet():
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))
    except Exception as error:  # offline, gated, missing, no connection
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise ModelError(
            f"{name} is not on this machine, and the Hub does not send it: {reason}.",
            remedy="Check the name and the connection, or name a folder.",
        ) from error
