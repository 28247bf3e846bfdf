"""How much disk space GGUF files take, before they are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from heretic.errors import ExportError
from heretic.export.code_files import read_table
from heretic.export.safetensors.checkpoint import read_checkpoint
from heretic.gguf.file_types import FileType, file_type


def needed_bytes(
    folder: Path, kinds: Sequence[FileType], unquantised: str, *, original: bool, kept: bool
) -> int:
    """Bytes of all files that exist at one time.

    Args:
        folder: The model.
        unquantised: The type in which models are converted before they are quantised.
        original: Whether the original is converted too, and quantised to one type at a time.
        kept: Whether the original's files stay.
    """
    values, embedding = _parameters(folder)
    base = file_type(unquantised).estimated_bytes(values, embedding)
    sizes = [one.estimated_bytes(values, embedding) for one in kinds]
    total = base + sum(sizes)
    if original:
        total += base + (sum(sizes) if kept else max(sizes, default=0))
    return total


def _parameters(folder: Path) -> tuple[int, int]:
    """Number of parameters, and of those with a row for each token of the vocabulary."""
    found = read_checkpoint(folder)
    if found is None:
        raise ExportError(
            f"{folder} holds no whole model in safetensors files.",
            remedy="Name the folder of a saved model.",
        )
    config = read_table(folder / "config.json")
    text = config.get("text_config")
    vocabulary = (text if isinstance(text, dict) else config).get("vocab_size")
    sizes = {name: math.prod(entry.shape) for name, entry in found.tensors.items()}
    embedding = sum(
        size for name, size in sizes.items() if found.tensors[name].shape[:1] == (vocabulary,)
    )
    return sum(sizes.values()), embedding
