"""What a GGUF file holds: architecture, tensors and their types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from heretic.errors import ExportError
from heretic.gguf.file_types import FileType


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a GGUF file.

    Attributes:
        name: As llama.cpp calls it, such as `blk.0.ffn_down.weight`.
        kind: Its type, such as `Q4_K`.
        width: Values in a row.
        rows: Number of rows.
    """

    name: str
    kind: str
    width: int
    rows: int

    @property
    def is_block_matrix(self) -> bool:
        """Whether it is a matrix of a layer: embedding and output head are none."""
        return self.rows > 1 and self.name.startswith("blk.") and self.name.endswith(".weight")


@dataclass(frozen=True, slots=True)
class Content:
    """What a GGUF file says of its model.

    Attributes:
        architecture: Such as `llama`.
        blocks: Number of layers.
    """

    architecture: str
    blocks: int
    tensors: tuple[Tensor, ...]


def read_content(path: Path) -> Content:
    """Read the head of a GGUF file.

    Raises:
        ExportError: It is damaged.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        architecture = str(reader.fields["general.architecture"].contents())
        blocks = int(reader.fields[f"{architecture}.block_count"].contents())
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ExportError(f"{path} cannot be read as a GGUF file: {error}.") from error
    tensors = tuple(
        Tensor(
            str(one.name),
            one.tensor_type.name,
            int(one.shape[0]),
            int(one.n_elements) // max(int(one.shape[0]), 1),
        )
        for one in reader.tensors
    )
    return Content(architecture, blocks, tensors)


def fallbacks(content: Content, kind: FileType) -> dict[str, int]:
    """How many matrices have another type since their rows are no multiple of the type's block.

    Returns:
        The number of matrices by their type; empty where all rows fit.
    """
    if not kind.is_quantised:
        return {}
    found = [one for one in content.tensors if one.rows > 1 and one.width % kind.block]
    return dict(Counter(one.kind for one in found if one.kind not in ("F32", kind.tensor)))


def without_importance(content: Content, names: Collection[str]) -> tuple[str, ...]:
    """Matrices of layers that an importance matrix says nothing of.

    Args:
        names: Names of the tensors that it has.
    """
    return tuple(
        one.name for one in content.tensors if one.is_block_matrix and one.name not in names
    )
