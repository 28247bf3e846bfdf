"""Describes a model from its configuration alone or, on request, from its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heretic.architectures.explain import is_norm
from heretic.architectures.resolver import (
    Writer,
    find_writers,
    hidden_size,
    layer_list,
    text_config,
)
from heretic.config.presets import Preset
from heretic.errors import UnsupportedModelError
from heretic.model import loading
from heretic.model.generation import attending_layers, carried_bytes
from heretic.model.hooks import replaced
from heretic.model.loading import Loaded
from heretic.model.room import Shape, Sizes
from heretic.model.source import ModelSource
from heretic.system.files import expanded
from heretic.system.hub import is_local
from heretic.system.machine import cache_bytes_per_token

BYTES = 2
"""Bytes per weight in half precision, in which models usually run."""

WEIGHT_FILES = (".safetensors", ".bin", ".gguf")

Norms = dict[str, str]
"""Writer's name to what lies between the writer and the residual stream; empty for nothing."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WriterRow:
    """One kind of residual writer.

    Attributes:
        component: Component that it belongs to.
        path: Path within a layer.
        layers: Indices of the layers that have it.
        shape: Shape of its weight, as [d_out, d_in].
        experts: Number of experts stacked in it; 0 for a single linear map.
        transposed: Whether the weight is stored as [d_in, d_out].
        norm: What lies between it and the residual stream: the path of a norm, or "gains measured"
            if the weights have shown one; empty for no norm, or one that scales all channels
            alike; None if unknown.
    """

    component: str
    path: str
    layers: tuple[int, ...]
    shape: tuple[int, ...]
    experts: int
    transposed: bool
    norm: str | None = None

    @property
    def edit(self) -> str:
        """How it is edited, in words."""
        if self.experts:
            return "sum of experts with none, otherwise each expert"
        return "output in the search, weight when saved"


@dataclass(frozen=True, slots=True)
class Description:
    """What `heretic inspect` shows.

    Attributes:
        layers: Path of the list of decoder layers.
        writers: What is edited.
        left_out: Pairs of a module, or kind of modules, and the reason why it is not edited.
        parameters: Number of weights.
        weight_bytes: Bytes of the weights in half precision.
        cache_bytes_per_token: Bytes of a token's keys and values in all layers, half precision.
        carried_bytes: Bytes of the states that a row carries on besides keys and values, in the
            model's own precision; None if they are not known without weights.
        vocabulary: Number of tokens that are predicted.
        linear: Weights of the layers' linear maps, which are what can be quantised.
        preset: The preset of the model's family, without what the settings replace.
        verified: Whether a run of the model has shown that no writer is missing.
        discovered: Descriptions of the writers that are not known by name.
        weights_here: Whether `model` is a local path that holds the weights.
        quantisation: What is done with quantised weights, in a sentence; None if they are not.
    """

    model: str
    model_type: str
    class_name: str
    layers: str
    n_layers: int
    hidden_size: int
    writers: tuple[WriterRow, ...]
    left_out: tuple[tuple[str, str], ...]
    parameters: int
    weight_bytes: int
    cache_bytes_per_token: int
    carried_bytes: int | None
    vocabulary: int
    linear: int
    preset: Preset | None = None
    verified: bool = False
    discovered: tuple[str, ...] = ()
    weights_here: bool = False
    quantisation: str | None = None

    def sizes(self, itemsize: int, bits: int = 0) -> Sizes:
        """What the memory of a search depends on; see `Shape.sizes`."""
        shape = Shape(
            parameters=self.parameters,
            linear=self.linear,
            layers=self.n_layers,
            hidden=self.hidden_size,
            vocabulary=self.vocabulary,
            cached=self.cache_bytes_per_token // BYTES,
            carried=self.carried_bytes or 0,
        )
        return shape.sizes(itemsize, bits)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        data = {**asdict(self), "preset": None if self.preset is None else self.preset.to_dict()}
        for row, own in zip(data["writers"], self.writers, strict=True):
            row["edit"] = own.edit
        return data


def describe(
    source: ModelSource,
    residual_writers: Sequence[str] = (),
    *,
    preset: Preset | None = None,
    loaded: Loaded | None = None,
) -> Description:
    """Describe which modules of a model are edited.

    Args:
        residual_writers: Paths within a layer of writers that the table does not name.
        preset: The preset of the model's family, without what the settings replace.
        loaded: The model with its weights. Without it, the description lacks writers that the
            table does not name, and norms that a run on the meta device does not show.

    Raises:
        ModelError: The configuration cannot be read, or the weights are quantised in a way that is
            not known.
        UnsupportedModelError: The model's type is unknown or cannot be edited.
    """
    model = loading.skeleton(source) if loaded is None else loaded.model
    quantised = loading.quantisation(source)
    path, layers = layer_list(model)
    if loaded is None:
        writers = find_writers(model, residual_writers)
    else:
        writers = loaded.structure.writers
    if not writers:
        raise UnsupportedModelError(
            f"No residual writer of {type(model).__name__} is known by name.",
            remedy="Load the weights to find writers by other names (`heretic inspect --weights`);"
            " see docs/models.md.",
        )
    norms = norms_after(model, writers) if loaded is None else _verified_norms(writers)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Description(
        model=source.model,
        model_type=str(model.config.model_type),
        class_name=type(model).__name__,
        layers=path,
        n_layers=len(layers),
        hidden_size=hidden_size(model),
        writers=tuple(_rows(path, writers, norms)),
        left_out=tuple(_left_out(model, path, writers)),
        parameters=parameters,
        weight_bytes=parameters * BYTES,
        cache_bytes_per_token=cache_bytes_per_token(
            text_config(model),
            attending_layers(model, len(layers)),
            hidden_size(model),
            BYTES,
        ),
        carried_bytes=carried_bytes(model) if loaded is not None else _carried(model, writers),
        vocabulary=text_config(model).vocab_size,
        linear=_linear_weights(layers),
        preset=preset,
        verified=loaded is not None,
        discovered=() if loaded is None else loaded.structure.discoveries(),
        weights_here=has_weights(source.model),
        quantisation=None if quantised is None else quantised.told(),
    )


def _linear_weights(layers: Iterable[nn.Module]) -> int:
    modules = [module for layer in layers for module in layer.modules()]
    return sum(one.weight.numel() for one in modules if isinstance(one, nn.Linear))


def has_weights(model: str) -> bool:
    """Whether `model` is a local file or folder that holds weights."""
    place = expanded(model)
    inside = [place] if place.is_file() else place.glob("*")
    return is_local(model) and any(path.suffix in WEIGHT_FILES for path in inside)


def _carried(model: nn.Module, writers: Sequence[Writer]) -> int | None:
    """`carried_bytes` of a model on the meta device; None if it does not run there."""
    with _without_experts(writers):
        try:
            return carried_bytes(model)
        except Exception as error:  # code that reads numbers may raise any error
            _log.info("The model does not run on the meta device: %s", error)
            return None


def _verified_norms(writers: Sequence[Writer]) -> Norms:
    """By writer's name, what the run with weights has shown: "gains measured", or empty."""
    return {w.name: "" if w.gains is None else "gains measured" for w in writers}


def norms_after(model: nn.Module, writers: Sequence[Writer]) -> Norms | None:
    """The norms that take a writer's output directly, found by a run on the meta device.

    Tensors on the meta device have a shape but no numbers. Blocks of experts choose by numbers, so
    they are replaced by functions that return a tensor of the right shape. A norm follows a writer
    if its input is the very tensor that the writer, or the block around it, returned, unless that
    block has added the residual stream. A norm that the output reaches in any other way is not
    found.

    Returns:
        By writer's name, the norm's path within the layer, empty if none follows; None if the
        model does not run on the meta device.
    """
    prefix, layers = layer_list(model)
    sources: dict[int, tuple[Tensor, list[str]]] = {}
    found = {writer.name: "" for writer in writers}

    def put_out(names: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            given = (*args, *kwargs.values())
            if isinstance(tensor, Tensor) and not _adds(
                tensor, given
            ):  # kept: no other gets its id
                sources[id(tensor)] = (tensor, names)

        return hook

    def taken_in(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            _, names = sources.get(id(args[0]) if args else 0, (None, []))
            found.update(dict.fromkeys(names, path))

        return hook

    with ExitStack() as stack, torch.inference_mode():
        for index, layer in enumerate(layers):
            own = [w for w in writers if w.layer == index]
            for path, module in layer.named_modules():
                start = f"{prefix}.{index}.{path}."
                inside = [w for w in own if f"{w.name}.".startswith(start)]
                if path and is_norm(module):
                    handle = module.register_forward_pre_hook(taken_in(path))
                elif path and len({w.component for w in inside}) == 1:
                    names = [w.name for w in inside]
                    handle = module.register_forward_hook(put_out(names), with_kwargs=True)
                else:  # the layer itself, and blocks with several components
                    continue
                stack.callback(handle.remove)
        stack.enter_context(_without_experts(writers))
        try:
            model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"))
        except Exception as error:  # code that reads numbers may raise any error
            _log.info("The model does not run on the meta device: %s", error)
            return None
    return found


@contextmanager
def _without_experts(writers: Sequence[Writer]) -> Iterator[None]:
    """Blocks of experts, which choose by numbers, return a tensor of the right shape."""
    with ExitStack() as stack:
        for block in {id(w.module): w.module for w in writers if w.expert is not None}.values():
            stack.enter_context(replaced(block, _same_shape))
        yield


def _adds(output: Tensor, inputs: Sequence[Any]) -> bool:
    """Whether a block is given the residual stream beside its input, as in BLOOM, and adds it."""
    alike = {id(one) for one in inputs if isinstance(one, Tensor) and one.shape == output.shape}
    return len(alike) > 1


def _same_shape(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return torch.empty_like(hidden_states)


def _rows(prefix: str, writers: Sequence[Writer], norms: Norms | None) -> Iterator[WriterRow]:
    groups: dict[tuple[str, str, tuple[int, ...], str | None], list[Writer]] = {}
    for writer in writers:
        path = writer.parameter_name.removeprefix(f"{prefix}.{writer.layer}.")
        shape = tuple(writer.whole().shape[-2:])
        shape = shape[::-1] if writer.transposed else shape
        norm = None if norms is None else norms[writer.name]
        key = writer.component, path.removesuffix(".weight"), shape, norm
        groups.setdefault(key, []).append(writer)
    for (component, path, shape, norm), group in groups.items():
        layers = tuple(dict.fromkeys(writer.layer for writer in group))
        experts = 0 if group[0].expert is None else len(group) // len(layers)
        yield WriterRow(component, path, layers, shape, experts, group[0].transposed, norm)


def _left_out(
    model: nn.Module, prefix: str, writers: Sequence[Writer]
) -> Iterator[tuple[str, str]]:
    """Modules that have weights and are not edited, and the reason."""
    edited = {id(writer.module) for writer in writers}
    layer = f"{prefix}."
    inside: dict[str, None] = {}
    outside: dict[str, int] = {}
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.ndim >= 2]
        if not own or id(module) in edited:
            continue
        if name.startswith(layer):
            inside[name.removeprefix(layer).partition(".")[2]] = None
        else:
            top = _tower(name, prefix)
            outside[top] = outside.get(top, 0) + sum(p.numel() for p in own)
    for name, count in outside.items():
        yield name, f"not part of the decoder layers ({count:,} weights)"
    if inside:
        yield ", ".join(inside), "read the residual stream, or are used only within a layer"


def _tower(name: str, prefix: str) -> str:
    """The beginning of a path, up to where it departs from the path of the layers."""
    parts, way = name.split("."), prefix.split(".")
    shared = next((i for i, (a, b) in enumerate(zip(parts, way, strict=False)) if a != b), 0)
    return ".".join(parts[: shared + 1])
