"""What `quantization_config` in config.json says of a checkpoint, and what is done with it.

What is not known here is refused before any work: read by other rules, packed numbers are numbers
too, and a model of wrong weights still writes text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from heretic.errors import ModelError

Saved = Literal["own format", "unquantised", "adapter"]
"""How an edited checkpoint can be saved: edited tensors packed anew by the rules of the others; as
an ordinary model; or not at all, so that an adapter is what can be saved."""

FLOATS = ("float-quantized", "naive-quantized")
INTEGERS = ("int-quantized", "naive-quantized")
PACKED = "pack-quantized"
NVFP4 = "nvfp4-pack-quantized"
NVFP4_GROUP = 16

REMEDY = "Name the unquantised model that it was made from."


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the weights of a checkpoint are quantised.

    Attributes:
        method: `quant_method` of config.json.
        label: For people, e.g. `FP8, blocks of 128 x 128`.
        saved: How the edited checkpoint can be saved.
        settings: The content of `quantization_config`.
        rounds_inputs: Whether programs that serve the checkpoint round the inputs of its linear
            maps as well. Heretic does not.
    """

    method: str
    label: str
    saved: Saved
    settings: Mapping[str, Any]
    rounds_inputs: bool = False

    @property
    def is_read_here(self) -> bool:
        """Whether Heretic reads the packed weights itself; transformers reads the others."""
        return self.saved != "adapter"

    def told(self, *, packed: bool = False) -> str:
        """What is done with the checkpoint, in a sentence.

        Args:
            packed: Whether it is run as it is packed.
        """
        loaded = "run as it is packed" if packed else "loaded dequantised"
        how = {
            "own format": f"{loaded}; edited weights are saved in this format, all others to the "
            "byte",
            "unquantised": f"{loaded} and saved unquantised",
            "adapter": "read by transformers; only an adapter can be saved",
        }[self.saved]
        served = "; programs that serve it round inputs too, Heretic does not"
        return f"Quantised as {self.label}: {how}{served if self.rounds_inputs else ''}."


def quantisation_of(config: Mapping[str, Any], model: str) -> Quantisation | None:
    """What a configuration says of its weights; None if they are not quantised.

    Args:
        config: The content of config.json.
        model: The model's name in messages.

    Raises:
        ModelError: They are quantised in a way that is not known here.
    """
    settings = _settings(config)
    if settings is None:
        return None
    method = _method(settings)
    known: dict[str, Callable[[Mapping[str, Any]], Quantisation]] = {
        "fp8": _fp8,
        "compressed-tensors": _compressed,
        "mxfp4": _mxfp4,
        "gptq": _gptq,
        "awq": _awq,
    }
    try:
        if method in known:
            return known[method](settings)
        if method in _read_by_transformers():
            return Quantisation(method, method, "adapter", settings)
        raise _UnknownError(f"quant_method {method!r} is not known")
    except _UnknownError as error:
        raise ModelError(
            f"The weights of {model} are quantised in a way that Heretic cannot read: {error}.",
            remedy=_remedy(method),
        ) from None


class _UnknownError(Exception):
    """A part of a quantization_config that is not known here; its text says which."""


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    places = (config, config.get("text_config"))
    found = (place.get("quantization_config") for place in places if isinstance(place, Mapping))
    return next((settings for settings in found if isinstance(settings, Mapping)), None)


def _method(settings: Mapping[str, Any]) -> str:
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):  # files of older releases
        return "bitsandbytes"
    return str(settings.get("quant_method", ""))


def _read_by_transformers() -> set[str]:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return {*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"}


def _remedy(method: str) -> str:
    if method == "modelopt":
        return (
            f"{REMEDY} Or convert it to the compressed-tensors format first "
            "(compressed_tensors.entrypoints.convert: ModelOptNvfp4Converter)."
        )
    return REMEDY


def _fp8(settings: Mapping[str, Any]) -> Quantisation:
    if settings.get("fmt") not in (None, "e4m3"):
        raise _UnknownError(f"fp8 numbers of the format {settings['fmt']!r}")
    if settings.get("scale_fmt") not in (None, "float", "ue8m0"):
        raise _UnknownError(f"fp8 scales of the format {settings['scale_fmt']!r}")
    block = block_of(settings)
    label = "FP8, one scale for each tensor"
    if block is not None:
        label = f"FP8, blocks of {block[0]} x {block[1]}"
    return Quantisation("fp8", label, "own format", settings, rounds_inputs=True)


def block_of(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block of FP8 numbers; None if a tensor has one scale.

    Raises:
        ModelError: It is no block.
    """
    block = settings.get("weight_block_size")
    if block is None:
        return None
    if isinstance(block, list | tuple) and len(block) == 2 and all(_is_count(n) for n in block):
        return int(block[0]), int(block[1])
    raise _UnknownError(f"fp8 blocks of {block!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _compressed(settings: Mapping[str, Any]) -> Quantisation:
    sparse = settings.get("sparsity_config")
    if isinstance(sparse, Mapping) and sparse.get("format", "dense") != "dense":
        raise _UnknownError(f"compressed-tensors with sparsity ({sparse['format']})")
    if settings.get("transform_config"):
        raise _UnknownError("compressed-tensors with transforms (rotations of inputs)")
    groups = [*scheme_groups(settings)]
    labels = dict.fromkeys(_scheme_label(weights, kind) for _, weights, kind in groups)
    if not labels:
        raise _UnknownError("compressed-tensors without a group of quantised weights")
    rounds = any(group.get("input_activations") for group, _, _ in groups)
    label = " and ".join(labels)
    return Quantisation("compressed-tensors", label, "own format", settings, rounds_inputs=rounds)


def scheme_groups(
    settings: Mapping[str, Any],
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], str]]:
    """The groups of a compressed-tensors configuration that quantise weights.

    Returns:
        Each group, what it says of weights, and the name of its format.
    """
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping):
        raise _UnknownError("compressed-tensors without config_groups")
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            raise _UnknownError(f"the compressed-tensors group {name} names a preset")
        weights = group.get("weights")
        if weights is None:
            continue
        if not isinstance(weights, Mapping):
            raise _UnknownError(f"the compressed-tensors group {name} says {weights!r} of weights")
        yield group, weights, str(group.get("format") or settings.get("format"))


def _scheme_label(weights: Mapping[str, Any], kind: str) -> str:
    bits, number = weights.get("num_bits"), weights.get("type", "int")
    strategy, group = weights.get("strategy"), weights.get("group_size")
    if strategy is None:
        strategy = "group" if _is_count(group) else "channel" if group == -1 else "tensor"
    if weights.get("actorder") in ("group", "dynamic", True):
        raise _UnknownError(f"{kind} weights whose groups are not neighbours (actorder)")
    scales = {
        "tensor": "one scale for each tensor",
        "channel": "a scale for each row",
        "group": f"groups of {group}",
        "tensor_group": f"groups of {group}",
        "block": "blocks of " + " x ".join(map(str, weights.get("block_structure") or ())),
    }
    if not _is_known(kind, number, bits, strategy, group):
        raise _UnknownError(f"{kind} weights of {bits} bits ({number}, {strategy})")
    name = "FP8" if (number, bits) == ("float", 8) else "NVFP4" if number == "float" else None
    return f"{name or f'{bits}-bit integers'}, {scales[str(strategy)]} ({kind})"


def _is_known(kind: str, number: object, bits: object, strategy: object, group: object) -> bool:
    """Whether numbers of a kind and a way to scale them are read and written here."""
    if (number, bits) == ("float", 8):
        return kind in FLOATS and strategy in ("tensor", "channel", "block")
    if (number, bits) == ("float", 4):
        return kind == NVFP4 and strategy == "tensor_group" and group == NVFP4_GROUP
    if number != "int" or bits not in range(1, 9):
        return False
    if kind == PACKED:
        return strategy in ("channel", "group")
    return kind in INTEGERS and bits == 8 and strategy in ("tensor", "channel")


def _mxfp4(settings: Mapping[str, Any]) -> Quantisation:
    return Quantisation("mxfp4", "MXFP4, groups of 32", "unquantised", settings)


def _gptq(settings: Mapping[str, Any]) -> Quantisation:
    bits, group = settings.get("bits"), settings.get("group_size")
    if not (_is_count(group) or group == -1):
        raise _UnknownError(f"GPTQ in groups of {group!r}")
    layout = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if bits not in (2, 4, 8):
        raise _UnknownError(f"GPTQ of {bits} bits")
    if layout not in ("gptq", "gptq_v2") or settings.get("is_marlin_format"):
        raise _UnknownError(f"GPTQ packed for one kernel ({layout}, marlin)")
    if any(not str(name).startswith("-:") for name in settings.get("dynamic") or ()):
        raise _UnknownError("GPTQ with other bits in some layers (dynamic)")
    if settings.get("pack_dtype") not in (None, "int32"):
        raise _UnknownError(f"GPTQ packed as {settings['pack_dtype']}")
    scales = f"groups of {group}" if _is_count(group) else "a scale for each row"
    return Quantisation("gptq", f"GPTQ, {bits} bits, {scales}", "unquantised", settings)


def _awq(settings: Mapping[str, Any]) -> Quantisation:
    bits = settings.get("bits", settings.get("w_bit"))
    group = settings.get("group_size", settings.get("q_group_size"))
    layout = str(settings.get("version", settings.get("format", "gemm"))).lower()
    if not (_is_count(group) or group == -1):
        raise _UnknownError(f"AWQ in groups of {group!r}")
    if bits != 4 or layout != "gemm":
        raise _UnknownError(f"AWQ of {bits} bits, packed for {layout!r}")
    if settings.get("zero_point") is False:
        raise _UnknownError("AWQ without zero points")
    return Quantisation("awq", f"AWQ, 4 bits, groups of {group}", "unquantised", settings)
