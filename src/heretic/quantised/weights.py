"""Which tensors of a checkpoint make up a packed weight, and by which rules it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from heretic.errors import ModelError
from heretic.quantised import integers
from heretic.quantised.compressed import PARTS, Compressed
from heretic.quantised.fp8 import BlockFp8
from heretic.quantised.kinds import REMEDY, Quantisation, block_of, scheme_groups
from heretic.system.optional import require

INPUTS = (
    ".activation_scale", ".input_scale", ".input_zero_point", ".input_global_scale",
    ".output_scale", ".output_zero_point", ".k_scale", ".v_scale", ".q_scale",
    ".k_zero_point", ".v_zero_point",
)  # fmt: skip
"""Ends of the names of tensors by which programs round inputs, keys and values while they serve."""

PACKED_DTYPES = ("F8_", "F4", "F6", "U8", "I8", "I32", "U32")
"""Beginnings of the dtypes of packed numbers, as safetensors names them."""


class Codec(Protocol):
    """Reads a packed weight; `writes` tells whether it also packs one (`Writing`)."""

    @property
    def writes(self) -> bool:
        """Whether an edited weight can be packed again."""

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight as the model's parameter holds it, or each of its experts."""


class Writing(Codec, Protocol):
    """Reads and writes a packed weight."""

    def encode(self, weight: Tensor, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts of an edited weight, in the shapes and dtypes of the old ones."""


class Stored(Protocol):
    """A tensor in a file."""

    @property
    def dtype(self) -> str:
        """As safetensors names it, e.g. `F8_E4M3`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""


E = TypeVar("E", bound=Stored)


@dataclass(frozen=True, slots=True)
class Packed(Generic[E]):
    """A packed weight.

    Attributes:
        name: What the weight would be called unquantised.
        parts: The tensors that it is made of, by what they are to the codec.
        shape: Shape of the weight.
    """

    name: str
    codec: Codec
    parts: Mapping[str, E]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contents(Generic[E]):
    """The tensors of a quantised checkpoint.

    Attributes:
        packed: Packed weights, by name.
        plain: All other tensors that belong to the model, by name.
    """

    packed: Mapping[str, Packed[E]]
    plain: Mapping[str, E]


def contents(
    tensors: Mapping[str, E],
    quantisation: Quantisation,
    read: Callable[[E], Tensor],
    model: str,
) -> Contents[E]:
    """Take a checkpoint apart into packed weights and other tensors.

    Args:
        tensors: All its tensors, by name.
        read: Reads one; it is called for those that hold a shape.
        model: The model's name in messages.

    Raises:
        ModelError: A packed tensor belongs to no weight, or does not have the shape that the
            configuration says.
    """
    rules = {"fp8": _fp8, "compressed-tensors": _compressed, "mxfp4": _mxfp4}
    found = rules.get(quantisation.method, _words)(tensors, quantisation, read)
    packed = {weight.name: weight for weight in found}
    used = {id(part) for weight in packed.values() for part in weight.parts.values()}
    plain = {
        name: tensor
        for name, tensor in tensors.items()
        if id(tensor) not in used and not name.endswith(INPUTS)
    }
    for name, tensor in plain.items():
        if tensor.dtype.startswith(PACKED_DTYPES):
            raise ModelError(
                f"{name} of {model} is packed ({tensor.dtype}), and nothing says how: its "
                f"config.json describes {quantisation.label}.",
                remedy=REMEDY,
            )
    if not packed:
        raise ModelError(
            f"config.json of {model} describes {quantisation.label}, and no tensor in its files is "
            "packed so.",
            remedy="Remove quantization_config from it if the weights are unquantised.",
        )
    return Contents(packed, plain)


def _fp8(
    tensors: Mapping[str, E], quantisation: Quantisation, read: Callable[[E], Tensor]
) -> Iterator[Packed[E]]:
    codec = BlockFp8(
        block_of(quantisation.settings), quantisation.settings.get("scale_fmt") == "ue8m0"
    )
    for name, tensor in tensors.items():
        scale = tensors.get(f"{name}_scale_inv")
        if tensor.dtype != "F8_E4M3" or scale is None:
            continue
        block, grid = codec.cell(tensor.shape), scale.shape
        wanted = tuple(
            -(-size // part) for size, part in zip(tensor.shape[-2:], block, strict=True)
        )
        stacked = tensor.shape[:-2]
        _check(name, grid, (*stacked, *wanted), one=codec.block is None)
        yield Packed(name, codec, {"weight": tensor, "scale": scale}, tensor.shape)


def _compressed(
    tensors: Mapping[str, E], quantisation: Quantisation, read: Callable[[E], Tensor]
) -> Iterator[Packed[E]]:
    codecs = _Schemes(quantisation.settings)
    for name in tensors:
        module, _, own = name.rpartition(".")
        if own != "weight_scale":
            continue
        names = {part: "weight" if part == "weight" else f"weight_{part}" for part in PARTS}
        parts = {
            part: tensors[f"{module}.{own}"]
            for part, own in names.items()
            if f"{module}.{own}" in tensors
        }
        codec = codecs.of(module)
        stated = read(parts["shape"]) if "shape" in parts else None
        shape = _shape(module, codec, parts, stated)
        yield Packed(f"{module}.weight", codec, parts, shape)


class _Schemes:
    """The codec of each module, by the groups of a compressed-tensors configuration."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        library = require(
            "compressed_tensors.quantization",
            extra="compressed",
            purpose="A checkpoint in the compressed-tensors format",
            kind=ModelError,
        )
        try:
            self._groups = [
                (
                    group["targets"],
                    Compressed(kind, library.QuantizationScheme.model_validate(group)),
                )
                for group, _, kind in scheme_groups(settings)
            ]
        except (ValueError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"compressed-tensors cannot read the quantization_config: {reason}.",
                remedy="Update it (pip install -U compressed-tensors), or name the unquantised "
                "model.",
            ) from error
        self.of = cache(self._of)

    def _of(self, module: str) -> Compressed:
        from compressed_tensors.utils.match import match_name

        named = [c for targets, c in self._groups if any(match_name(module, t) for t in targets)]
        if named:
            return named[0]
        by_class = [
            codec
            for targets, codec in self._groups
            if any(not target.startswith("re:") and "." not in target for target in targets)
        ]
        if len(by_class) == 1 or (by_class and len(self._groups) == 1):
            return by_class[0]
        if len(self._groups) == 1:
            return self._groups[0][1]
        raise ModelError(
            f"The quantization_config does not say by which of its groups {module} is quantised.",
            remedy=REMEDY,
        )


def _shape(
    module: str, codec: Compressed, parts: Mapping[str, E], stated: Tensor | None
) -> tuple[int, ...]:
    """The shape of a weight, once its parts are known to be what its scheme says.

    Raises:
        ModelError: They are not.
    """
    lead = codec.lead
    absent = [part for part in codec.needed if part not in parts]
    if absent:
        raise ModelError(
            f"{module} is quantised as {codec.format}, and weight_{absent[0]} is missing.",
            remedy="Download the model again.",
        )
    shape = codec.shape(parts[lead].shape, stated)
    cell = codec.cell(shape)
    wanted = tuple(-(-size // part) for size, part in zip(shape, cell, strict=True))
    _check(f"{module}.weight", parts["scale"].shape, wanted, one=cell == shape)
    return shape


def _check(name: str, grid: tuple[int, ...], wanted: tuple[int, ...], *, one: bool) -> None:
    """Refuse scales of another number than the configuration says.

    Args:
        one: Whether each matrix has one scale, whose shape is written in several ways.

    Raises:
        ModelError: They are.
    """
    if one:
        count, expected = 1, 1
        for size in grid:
            count *= size
        for size in wanted:
            expected *= size
        if count == expected:
            return
    elif grid == wanted:
        return
    raise ModelError(
        f"The scales of {name} have the shape {list(grid)}, and by config.json it would be "
        f"{list(wanted)}.",
        remedy="Use the config.json that belongs to these weights, or download the model again.",
    )


def _mxfp4(
    tensors: Mapping[str, E], quantisation: Quantisation, read: Callable[[E], Tensor]
) -> Iterator[Packed[E]]:
    codec = integers.Mxfp4()
    for name, blocks in tensors.items():
        weight = name.removesuffix("_blocks")
        scales = tensors.get(f"{weight}_scales")
        if weight == name or scales is None:
            continue
        *experts, outputs, groups, _ = blocks.shape
        _check(weight, scales.shape, blocks.shape[:-1], one=False)
        shape = (*experts, groups * integers.MXFP4_GROUP, outputs)
        yield Packed(weight, codec, {"blocks": blocks, "scales": scales}, shape)


def _words(
    tensors: Mapping[str, E], quantisation: Quantisation, read: Callable[[E], Tensor]
) -> Iterator[Packed[E]]:
    """Weights of GPTQ and AWQ, in words of 32 bits."""
    settings, gptq = quantisation.settings, quantisation.method == "gptq"
    group = int(settings.get("group_size", settings.get("q_group_size", 128)))
    bits = int(settings.get("bits", settings.get("w_bit", 4)))
    layout = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    codec: Codec = integers.Awq(group)
    if gptq:
        codec = integers.Gptq(bits, group, zeros_less_one=layout == "gptq")
    for name, words in tensors.items():
        module, _, own = name.rpartition(".")
        if own != "qweight":
            continue
        names = ("qweight", "qzeros", "scales", "g_idx")
        parts = {n: tensors[f"{module}.{n}"] for n in names if f"{module}.{n}" in tensors}
        per_word = integers.WORD // bits
        rows, columns = words.shape
        inputs, outputs = (rows * per_word, columns) if gptq else (rows, columns * per_word)
        if "scales" not in parts or "qzeros" not in parts:
            raise ModelError(
                f"{module} lacks its scales or zero points.", remedy="Download the model again."
            )
        size = group if group > 0 else inputs
        _check(name, parts["scales"].shape, (-(-inputs // size), outputs), one=False)
        yield Packed(f"{module}.weight", codec, parts, (outputs, inputs))
