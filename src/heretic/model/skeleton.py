"""What is known of a model from its configuration alone: no weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from heretic.architectures import Writer, find_writers
from heretic.architectures.resolver import hidden_size, layer_list, text_config
from heretic.config import Settings
from heretic.errors import UnsupportedModelError
from heretic.model import loading
from heretic.model.machine import cache_bytes_per_token
from heretic.presets import Preset, applied

BYTES = 2
"""Of a weight in half precision, in which models are usually run."""


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
    """

    component: str
    path: str
    layers: tuple[int, ...]
    shape: tuple[int, ...]
    experts: int
    transposed: bool

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

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        data = {**asdict(self), "preset": None if self.preset is None else self.preset.to_dict()}
        for row, own in zip(data["writers"], self.writers, strict=True):
            row["edit"] = own.edit
        return data


def describe(settings: Settings) -> Description:
    """What is edited in a model, by the names of its modules.

    Norms after writers, and writers that the table does not name, show only when the model runs.

    Raises:
        ModelError: There is no configuration to read.
        UnsupportedModelError: The type is not known, or is one that cannot be edited.
    """
    model = loading.skeleton(settings)
    path, layers = layer_list(model)
    writers = find_writers(model, settings.residual_writers)
    if not writers:
        raise UnsupportedModelError(
            f"No residual writer of {type(model).__name__} is known by name.",
            remedy="Those that are not show when the model is loaded; see docs/models.md.",
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Description(
        model=str(settings.model),
        model_type=str(model.config.model_type),
        class_name=type(model).__name__,
        layers=path,
        n_layers=len(layers),
        hidden_size=hidden_size(model),
        writers=tuple(_rows(path, writers)),
        left_out=tuple(_left_out(model, path, writers)),
        parameters=parameters,
        weight_bytes=parameters * BYTES,
        cache_bytes_per_token=cache_bytes_per_token(
            text_config(model), len(layers), hidden_size(model), BYTES
        ),
        preset=applied(settings),
    )


def _rows(prefix: str, writers: Sequence[Writer]) -> Iterator[WriterRow]:
    groups: dict[tuple[str, str, tuple[int, ...]], list[Writer]] = {}
    for writer in writers:
        path = writer.parameter_name.removeprefix(f"{prefix}.{writer.layer}.")
        shape = tuple(writer.whole().shape[-2:])
        shape = shape[::-1] if writer.transposed else shape
        key = writer.component, path.removesuffix(".weight"), shape
        groups.setdefault(key, []).append(writer)
    for (component, path, shape), group in groups.items():
        layers = tuple(dict.fromkeys(writer.layer for writer in group))
        experts = 0 if group[0].expert is None else len(group) // len(layers)
        yield WriterRow(component, path, layers, shape, experts, group[0].transposed)


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
