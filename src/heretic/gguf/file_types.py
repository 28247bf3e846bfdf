"""Types of GGUF files, by the names that llama.cpp gives them (`q4_k_m`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from heretic.errors import ExportError
from heretic.gguf.bindings import file_type_numbers

UNQUANTISED = {"f32": 4, "f16": 2, "bf16": 2}
"""Types that only round: bytes of a value."""

_IMPORTANCE_BELOW = "q6_k"
_NOT_MADE = {"guessed", "nvfp4"}
"""In the enum, but nothing that llama.cpp quantises to."""

_MAIN = {"iq2_m": "iq2_s", "iq3_xs": "iq3_s", "iq3_m": "iq3_s", "mxfp4_moe": "mxfp4"}
"""The type of most tensors, where the name of the file's type does not tell it."""

_EMBEDDING_BITS = 8.5
"""Most bits of a value in embedding and output head, which are kept finer than the rest."""


@dataclass(frozen=True, slots=True)
class FileType:
    """A type of GGUF file.

    Attributes:
        name: As llama.cpp writes it, in lower case.
        number: Its number in `enum llama_ftype`.
        tensor: The type that most matrices of such a file have, as the `gguf` package names it.
        block: Number of values that are quantised together; a matrix whose rows are no multiple of
            it gets another type.
        bits: Bits of a value in such a matrix, scales included.
    """

    name: str
    number: int
    tensor: str
    block: int
    bits: float

    @property
    def is_quantised(self) -> bool:
        """Whether it is more than a rounding of each value."""
        return self.name not in UNQUANTISED

    @property
    def wants_importance(self) -> bool:
        """Whether it has few enough bits for an importance matrix to help: fewer than q6_k."""
        return self.is_quantised and self.bits < file_type(_IMPORTANCE_BELOW).bits

    def estimated_bytes(self, values: int, embedding: int) -> int:
        """About how large a file is, from above.

        Args:
            values: Number of the model's parameters.
            embedding: How many of them are in embedding and output head.
        """
        bits = self.bits
        # Some tensors of a mixture (`_m`, `_l`) get a type with up to two bits more.
        mixed = bits + 1.0 if self.is_quantised else bits
        finer = max(_EMBEDDING_BITS, mixed) if self.is_quantised else bits
        return int((values - embedding) * mixed / 8 + embedding * finer / 8)


def known_types() -> dict[str, FileType]:
    """All types that llama.cpp makes, by their names, those with the most bits first.

    A type is left out if the package `gguf`, which reads the files, does not know it yet.

    Raises:
        ExportError: The extra `gguf` is not installed.
    """
    found = [_described(name, number) for name, number in file_type_numbers().items()]
    kinds = [kind for kind in found if kind is not None]
    return {kind.name: kind for kind in sorted(kinds, key=lambda kind: (-kind.bits, kind.name))}


def _described(name: str, number: int) -> FileType | None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    main = _MAIN.get(name, name)
    if main.upper() not in GGMLQuantizationType.__members__:
        main = re.sub("_[sml]$", "", main)
    if name in _NOT_MADE or main.upper() not in GGMLQuantizationType.__members__:
        return None
    kind = GGMLQuantizationType[main.upper()]
    block, size = GGML_QUANT_SIZES[kind]
    return FileType(name, number, kind.name, block, 8 * size / block)


def file_type(name: str) -> FileType:
    """The type of that name, in upper or lower case.

    Raises:
        ExportError: llama.cpp has no such type, or the extra `gguf` is not installed.
    """
    name = name.strip().lower().replace("-", "_")
    known = known_types()
    if name not in known:
        raise ExportError(
            f"There is no GGUF type {name!r} here.", remedy=f"There are {', '.join(known)}."
        )
    return known[name]


def file_types(names: Sequence[str]) -> tuple[FileType, ...]:
    """The types of these names, each once; a name may hold several, separated by commas.

    Raises:
        ExportError: One is unknown, or there are none.
    """
    found = {one.name: one for one in map(file_type, single_names(names))}
    return tuple(found.values())


def single_names(names: Sequence[str]) -> list[str]:
    """Names of types, of which each may hold several, separated by commas; they may be unknown.

    Raises:
        ExportError: There are none.
    """
    found = [part for name in names for part in name.split(",") if part.strip()]
    if not found:
        raise ExportError("No GGUF type is named.", remedy="Name one, such as q4_k_m.")
    return found
