"""Find a model's decoder layers and residual writers, by the names in the table."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn

from heretic.architectures.table import (
    EXPERT_WEIGHTS,
    HINTS,
    LAYERS,
    REFUSED,
    ROUTERS,
    THROUGH,
    WRITERS,
)
from heretic.errors import ModelError, UnsupportedModelError
from heretic.quantised.fp8 import BlockFp8
from heretic.records.plan import MLP, RowNormalization


@dataclass(frozen=True, slots=True)
class Writer:
    """A linear map whose output is added to the residual stream.

    Each of the experts that are stacked in one parameter is a writer; they share their module.

    Attributes:
        layer: 0-based index of the decoder layer.
        component: The group whose kernel it gets, e.g. `attn.o_proj`.
        name: Dotted path of the module in the model; for an expert, the path of the parameter and
            the expert's number.
        module: The module itself.
        transposed: Whether [d_in, d_out] is stored (GPT-2's Conv1D; gpt-oss' experts).
        parameter: Name of the weight in the module, dotted if it belongs to a submodule.
        expert: Number of the expert in the module; None for a module that is one linear map.
        gains: Factors by which a norm between the writer and the stream multiplies the output's
            channels, float32 [d_out]; None without such a norm.
        router: Where a block's output is sorted by expert, the module whose output assigns it to
            tokens; see `table.ROUTERS`. Else None.
    """

    layer: int
    component: str
    name: str
    module: nn.Module
    transposed: bool
    parameter: str = "weight"
    expert: int | None = None
    gains: Tensor | None = field(default=None, compare=False)
    router: nn.Module | None = field(default=None, compare=False)

    def edited_in_sum(self, row_normalization: RowNormalization) -> bool:
        """Whether the experts' sum, biases included, is edited instead of each expert."""
        return self.expert is not None and row_normalization == "none"

    @property
    def parameter_name(self) -> str:
        """The weight's name in the model's state dict; experts of a block share one."""
        return f"{self.name}.weight" if self.expert is None else self.name.rpartition(".")[0]

    @property
    def experts(self) -> int:
        """Number of experts in the parameter; 0 for a module that is one linear map."""
        return 0 if self.expert is None else len(self.whole())

    @property
    def stacked_by_rows(self) -> bool:
        """Whether the parameter is 2-D, with the experts' rows one below the other."""
        return self.expert is not None and attrgetter(self.parameter)(self.module).ndim == 2

    def whole(self) -> Tensor:
        """The parameter as stored; stacked experts have the first dimension."""
        weight = cast("Tensor", attrgetter(self.parameter)(self.module))
        if not self.stacked_by_rows:
            return weight
        return weight.view(cast("int", self.module.num_experts), -1, weight.shape[1])

    def stored(self) -> Tensor:
        """The weight as [d_out, d_in], a view of the parameter in its dtype.

        Raises:
            ModelError: The weight is offloaded to disk, or quantised.
        """
        self._check_stored()
        weight = self.whole().detach()
        matrix = weight if self.expert is None else weight[self.expert]
        return matrix.mT if self.transposed else matrix

    def check_readable(self) -> None:
        """Check that `weight` can be read.

        Raises:
            ModelError: The weight is offloaded to disk, or packed by another way than bitsandbytes
                or FP8.
        """
        if not self._is_packed_by_bitsandbytes() and self._scale() is None:
            self._check_stored()

    def _is_packed_by_bitsandbytes(self) -> bool:
        return type(self.module).__module__.startswith("bitsandbytes")

    def _scale(self) -> Tensor | None:
        """The scales of a weight in FP8 as transformers runs it; None for any other weight."""
        weight = cast("Tensor", attrgetter(self.parameter)(self.module))
        scale = _attribute(self.module, f"{self.parameter}_scale_inv")
        packed = weight.dtype == torch.float8_e4m3fn and not weight.is_meta
        return scale if packed and isinstance(scale, Tensor) else None

    def _check_stored(self) -> None:
        weight = cast("Tensor", attrgetter(self.parameter)(self.module))
        if weight.is_meta:
            raise ModelError(
                f"The weight of {self.name} is offloaded to disk.",
                remedy="Give the model more memory (max_memory), or load it quantised.",
            )
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise ModelError(
                f"The weight of {self.name} is quantised in a format that Heretic cannot read.",
                remedy="Search with row_normalization = 'none', which needs no weights, or load "
                "the unquantised model.",
            )

    def weight(self) -> Tensor:
        """The weight as [d_out, d_in], dequantised, float32 (float64 if it is stored so).

        Raises:
            ModelError: The weight is offloaded to disk, or packed by another way than bitsandbytes
                or FP8.
        """
        if self._is_packed_by_bitsandbytes():
            return _dequantized(self.module).float()
        scale = self._scale()
        if scale is not None:
            return self._unpacked(scale)
        matrix = self.stored()
        return matrix.to(torch.promote_types(matrix.dtype, torch.float32))

    def _unpacked(self, scale: Tensor) -> Tensor:
        block = _attribute(self.module, "block_size")
        weight = self.whole().detach()
        if self.expert is not None:
            weight, scale = weight[self.expert], scale[self.expert]
        codec = BlockFp8((int(block[0]), int(block[1])) if isinstance(block, Sequence) else None)
        matrix = codec.decode({"weight": weight, "scale": scale.detach()})
        return matrix.mT if self.transposed else matrix

    def like(self, basis: Tensor) -> Tensor:
        """Zeros [d_out, 1] on the weight's device and in its precision, in place of the weight.

        Args:
            basis: Directions [k, d_out].
        """
        stored = self.whole()
        full = stored.is_floating_point() and stored.element_size() > 1
        dtype = torch.promote_types(stored.dtype, torch.float32) if full else torch.float32
        device = "cpu" if stored.is_meta else stored.device  # offloaded weights are on meta
        return torch.zeros(basis.shape[-1], 1, dtype=dtype, device=device)

    def bias(self) -> Tensor | None:
        """The bias [d_out], a view of the parameter; None without one."""
        name = "bias" if self.parameter == "weight" else f"{self.parameter}_bias"
        bias = _attribute(self.module, name)
        if not isinstance(bias, Tensor):
            return None
        return bias.detach() if self.expert is None else bias.detach()[self.expert]


def _attribute(module: nn.Module, path: str) -> object:
    """The attribute at a dotted path within a module; None if it does not exist."""
    try:
        return attrgetter(path)(module)
    except AttributeError:
        return None


def _dequantized(module: nn.Module) -> Tensor:
    """The weight [d_out, d_in] of a module that bitsandbytes quantised."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = cast("nn.Parameter", module.weight)
    dequantized: Tensor = dequantize_bnb_weight(weight, state=getattr(module, "state", None))
    return dequantized


def text_config(model: nn.Module) -> Any:
    """The configuration of the model's text decoder."""
    config = cast("Any", model.config)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def hidden_size(model: nn.Module) -> int:
    """Width of the residual stream."""
    config = text_config(model)
    names = ("hidden_size", "n_embd", "d_model", "emb_dim", "word_embed_proj_dim")
    found = (getattr(config, name, None) for name in names)
    size = next((size for size in found if isinstance(size, int)), None)
    return int(size or cast("Any", model).get_input_embeddings().weight.shape[1])


def layer_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path of the list of decoder layers, and the list.

    Raises:
        UnsupportedModelError: The type is refused, or no list of layers is found.
    """
    model_type = str(getattr(model.config, "model_type", ""))
    if model_type in REFUSED:
        raise UnsupportedModelError(
            f"Models of type {model_type!r} cannot be edited: {REFUSED[model_type]}."
        )
    if model_type in LAYERS:
        return LAYERS[model_type], cast("nn.ModuleList", model.get_submodule(LAYERS[model_type]))
    decoder = cast("Any", model).get_decoder() if hasattr(model, "get_decoder") else model
    wanted = getattr(text_config(model), "num_hidden_layers", None)
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    fitting = [layers for layers in lists if len(layers) == wanted] or lists
    if not fitting:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of decoder layers that Heretic can find.",
            remedy="Please report the model type.",
        )
    names = {id(module): name for name, module in model.named_modules()}
    return names[id(fitting[0])], fitting[0]


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple(
        (component, re.compile(r"[^.]+".join(map(re.escape, path.split("*")))))
        for component, paths in WRITERS.items()
        for path in paths
    )


def component_of(path: str) -> str | None:
    """The component of the module at a path within a layer; None if the table lacks it."""
    return next((name for name, known in _patterns() if known.fullmatch(path)), None)


def guessed_component(path: str) -> str:
    """The component that the path of an unknown writer suggests."""
    return next(
        (name for name, hints in HINTS.items() if any(hint in path.lower() for hint in hints)), MLP
    )


def known_paths(layer: nn.Module, by_hand: Collection[str] = ()) -> list[str]:
    """Paths of a layer's writers according to the table, then those named by the user.

    Args:
        layer: The decoder layer.
        by_hand: Paths from the setting `residual_writers`; those that the layer lacks are left out.
    """
    modules = dict(layer.named_modules())
    gated = {path: gated_writer(path, module) for path, module in modules.items()}
    known = [
        path
        for path, module in modules.items()
        if gated[path] or (component_of(path) and is_writer(module) and path not in gated.values())
    ]
    return list(dict.fromkeys([*known, *(path for path in by_hand if path in modules)]))


def gated_writer(path: str, module: nn.Module) -> str | None:
    """The path of the writer inside a module that gates it; None for other modules."""
    inner = THROUGH.get(path)
    within = _attribute(module, inner.removeprefix(f"{path}.")) if inner else None
    return inner if isinstance(within, nn.Module) and is_writer(within) else None


def is_writer(module: nn.Module) -> bool:
    """Whether a module is one linear map, or holds the down projections of experts."""
    if _expert_parameter(module) is not None:
        return True
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not list(module.children())


def writers_at(
    index: int, layer: nn.Module, prefix: str, path: str, gains: Tensor | None = None
) -> Iterator[Writer]:
    """The writers in the module at `path` within a layer: one, or one per expert.

    Args:
        index: 0-based index of the layer.
        layer: The decoder layer.
        prefix: Path of the layer in the model.
        path: Path of the module within the layer.
        gains: The writers' gains, see `Writer`.

    Raises:
        UnsupportedModelError: The module has no weight that can be edited.
    """
    module = layer.get_submodule(path)
    path = gated_writer(path, module) or path
    module = layer.get_submodule(path)
    component = component_of(path) or guessed_component(path)
    name = f"{prefix}.{path}"
    stacked = _expert_parameter(module)
    if stacked is None:
        if not isinstance(getattr(module, "weight", None), Tensor):
            raise UnsupportedModelError(f"{name} has no weight that can be edited.")
        transposed = type(module).__name__ == "Conv1D"
        yield Writer(index, component, name, module, transposed, gains=gains)
        return
    parent, _, own = path.rpartition(".")
    router = getattr(layer.get_submodule(parent), ROUTERS.get(own, ""), None)
    first = Writer(
        index,
        component,
        f"{name}.{stacked}.0",
        module,
        _is_transposed(module, cast("Tensor", _attribute(module, stacked))),
        parameter=stacked,
        expert=0,
        gains=gains,
        router=router,
    )
    for expert in range(first.experts):
        yield replace(first, name=f"{name}.{stacked}.{expert}", expert=expert)


def _expert_parameter(module: nn.Module) -> str | None:
    """Name of the parameter with the experts' down projections; None if there is none."""
    return next((name for name in EXPERT_WEIGHTS if _holds_experts(module, name)), None)


def _holds_experts(module: nn.Module, name: str) -> bool:
    parameter, count = _attribute(module, name), getattr(module, "num_experts", None)
    if not isinstance(parameter, Tensor):
        return False
    if "." in name:
        return parameter.ndim == 2 and isinstance(count, int) and len(parameter) % count == 0
    # The weight of a convolution has three dimensions too.
    return parameter.ndim == 3 and (name != "weight" or count == len(parameter))


def _is_transposed(module: nn.Module, parameter: Tensor) -> bool:
    """Whether experts are stored as [experts, d_in, d_out]."""
    if parameter.ndim == 2:
        return True
    known = getattr(module, "is_transposed", None)
    if isinstance(known, bool):
        return known
    # Modules without transformers' common interface (Llama 4) multiply from the right.
    return parameter.shape[1] != getattr(module, "hidden_size", parameter.shape[1])


def find_writers(model: nn.Module, by_hand: Collection[str] = ()) -> tuple[Writer, ...]:
    """All residual writers that the table knows, layer by layer; not checked, without gains.

    Args:
        model: The model.
        by_hand: More paths within a layer, from the setting `residual_writers`.
    """
    prefix, layers = layer_list(model)
    return tuple(
        writer
        for index, layer in enumerate(layers)
        for path in known_paths(layer, by_hand)
        for writer in writers_at(index, layer, f"{prefix}.{index}", path)
    )


def first_tensor(output: Any) -> Tensor:
    """The hidden state in a layer's output, which may be a tuple.

    Raises:
        UnsupportedModelError: The output is not a tensor.
    """
    tensor = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(tensor, Tensor):
        raise UnsupportedModelError(
            f"The output of a layer is {type(tensor).__name__}, not a tensor.",
            remedy="docs/models.md lists what can be edited.",
        )
    return tensor


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden state a layer was called with."""
    return first_tensor(args or kwargs["hidden_states"])
