"""What is known of a model from its configuration alone, or from its weights where wanted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
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
from heretic.model.hooks import replaced
from heretic.model.loading import Loaded
from heretic.model.source import ModelSource
from heretic.system.hub import is_local
from heretic.system.machine import cache_bytes_per_token

BYTES = 2
"""Of a weight in half precision, in which models are usually run."""

WEIGHT_FILES = (".safetensors", ".bin", ".gguf")

Norms = dict[str, str]
"""Name of a writer to what lies between it and the stream; empty for nothing."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WriterRow:
    """One kind of residual writer.

    Attributes:
        component: The group it is searched with.
        path: Within a layer.
        layers: Indices of the layers that have it.
        shape: Of its weight as [d_out, d_in].
        experts: How many are stacked in it; 0 for a single map.
        transposed: Whether the weight is stored the other way round.
        norm: What lies between it and the stream: the path of a norm, or "gains measured" where the
            weights have shown one; empty for none, or one that treats all channels alike; None
            where that is not known.
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
        """How it is edited."""
        if self.experts:
            return "under none as one sum, else each expert"
        return "output in the search, weight when saved"


@dataclass(frozen=True, slots=True)
class Description:
    """What `heretic inspect` shows.

    Attributes:
        layers: Path of the list of decoder layers.
        writers: What is edited.
        left_out: Module or kind of modules to the reason why it is left alone.
        parameters: Number of weights.
        weight_bytes: What they take in half precision.
        cache_bytes_per_token: Keys and values of one token of one row, in half precision.
        preset: What the model's family needs, as far as it holds in the settings.
        verified: Whether the model was run, and its writers are all there are.
        discovered: Writers that are not known by name, with what they are taken for, in words.
        weights_here: Whether the weights are in the folder that was named.
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
    preset: Preset | None = None
    verified: bool = False
    discovered: tuple[str, ...] = ()
    weights_here: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
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
    """What is edited in a model, by the names of its modules.

    Args:
        residual_writers: Paths within a layer of writers that the table does not name.
        preset: What the model's family needs, as far as it holds in the settings.
        loaded: The model with its weights. Without it, writers that the table does not name do not
            show, and norms after writers only as far as a run without numbers tells.

    Raises:
        ModelError: There is no configuration to read.
        UnsupportedModelError: The type is not known, or is one that cannot be edited.
    """
    model = loading.skeleton(source) if loaded is None else loaded.model
    path, layers = layer_list(model)
    if loaded is None:
        writers = find_writers(model, residual_writers)
    else:
        writers = loaded.structure.writers
    if not writers:
        raise UnsupportedModelError(
            f"No residual writer of {type(model).__name__} is known by name.",
            remedy="Those that are not show when the model is loaded (`heretic inspect --weights`);"
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
            text_config(model), len(layers), hidden_size(model), BYTES
        ),
        preset=preset,
        verified=loaded is not None,
        discovered=() if loaded is None else loaded.structure.discoveries(),
        weights_here=has_weights(source.model),
    )


def has_weights(model: str) -> bool:
    """Whether a local model is there with its weights."""
    place = Path(model).expanduser()
    inside = [place] if place.is_file() else place.glob("*")
    return is_local(model) and any(path.suffix in WEIGHT_FILES for path in inside)


def _verified_norms(writers: Sequence[Writer]) -> Norms:
    """By writer, whether a norm follows, as the run with weights has shown."""
    return {w.name: "" if w.gains is None else "gains measured" for w in writers}


def norms_after(model: nn.Module, writers: Sequence[Writer]) -> Norms | None:
    """The norms that a writer's output goes straight into, by a run without numbers.

    The model runs on the meta device, where a tensor has a shape and nothing else; blocks of
    experts, which choose by numbers, only hand on a tensor of that shape. A norm follows a writer
    if it is handed the very tensor that the writer, or the block around it, put out. One that is
    reached on any other way does not show.

    Returns:
        By writer's name, the norm's path within the layer, empty without one; None where such a run
        cannot be made.
    """
    prefix, layers = layer_list(model)
    sources: dict[int, tuple[Tensor, list[str]]] = {}
    found = {writer.name: "" for writer in writers}

    def put_out(names: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, Tensor):  # kept, so that its identity stays its own
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
                    handle = module.register_forward_hook(put_out(names))
                else:  # the layer itself, and blocks with a stream of their own
                    continue
                stack.callback(handle.remove)
        for block in {id(w.module): w.module for w in writers if w.expert is not None}.values():
            stack.enter_context(replaced(block, _same_shape))
        try:
            model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"))
        except Exception as error:  # what looks at numbers cannot run; any kind of error says so
            _log.info("No run without numbers: %s", error)
            return None
    return found


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
    """What has weights and is not edited, and why."""
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
        yield ", ".join(inside), "read the residual stream, or serve within a layer"


def _tower(name: str, prefix: str) -> str:
    """The part of a path that leaves the way to the layers."""
    parts, way = name.split("."), prefix.split(".")
    shared = next((i for i, (a, b) in enumerate(zip(parts, way, strict=False)) if a != b), 0)
    return ".".join(parts[: shared + 1])
