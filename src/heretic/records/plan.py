"""Kernels and plans: which edit a trial makes.

Everything here is frozen, comparable and serialisable, and needs no torch: a worker on another
machine needs only a `Plan` and the run's directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from heretic.errors import RunError
from heretic.records import parse
from heretic.records.choices import DirectionScope as DirectionScope  # noqa: PLC0414 - imported from here
from heretic.records.choices import RowNormalization as RowNormalization  # noqa: PLC0414 - imported from here

ATTENTION = "attn.o_proj"
MLP = "mlp.down_proj"
MIXER = "mixer.out_proj"
MOST_RANK = 2**16
"""More directions than any layer has."""

COMPONENT_ALIASES = {"attn": ATTENTION, "mlp": MLP}


@dataclass(frozen=True, slots=True)
class Kernel:
    """The ablation weight of one component as a function of the layer index.

    See docs/how-it-works.md, "Edits".

    Attributes:
        max_weight: Weight at the peak.
        max_weight_position: Layer index of the peak; may lie between layers.
        min_weight: Weight at the distance `min_weight_distance` (absolute, not a fraction).
        min_weight_distance: Layers further from the peak than this are not edited.
    """

    max_weight: float
    max_weight_position: float
    min_weight: float
    min_weight_distance: float

    def weight(self, layer: int) -> float:
        """The ablation weight of layer `layer` (0-based); with 0.0 it is not edited."""
        distance = abs(layer - self.max_weight_position)
        if distance > self.min_weight_distance:
            return 0.0
        if self.min_weight_distance == 0:
            return self.max_weight
        slope = (self.min_weight - self.max_weight) / self.min_weight_distance
        return self.max_weight + distance * slope

    def ablation_weights(self, layer: int, rank: int) -> tuple[float, ...]:
        """The weights of a layer, one per direction: the same weight `rank` times."""
        return (self.weight(layer),) * rank

    def figures(self) -> tuple[float, float, float, float | None]:
        """The kernel's figures for tables, in the order of `KERNEL_FIGURES`."""
        return (
            self.max_weight,
            self.max_weight_position,
            self.min_weight,
            self.min_weight_distance,
        )


KERNEL_FIGURES = ("max weight", "at layer", "min weight", "within layers")
"""Headings of `figures()`."""

AbliterationParameters = Kernel
"""The name under which the library interface exports `Kernel`."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A free-form kernel: ablation weights layer by layer, as the gradient sweep finds them.

    Attributes:
        layers: For layer 0, 1, ..., one weight per direction; layers and directions beyond those
            listed are not edited.
    """

    layers: tuple[tuple[float, ...], ...]

    def ablation_weights(self, layer: int, rank: int) -> tuple[float, ...]:
        """The weights of a layer, one per direction, with zeros appended up to `rank`."""
        known = self.layers[layer][:rank] if layer < len(self.layers) else ()
        return known + (0.0,) * (rank - len(known))

    def figures(self) -> tuple[float, float, float, float | None]:
        """The largest weight, its layer, the smallest weight, and None in place of a distance.

        The weights of all directions count.
        """
        highest = [max(row, default=0.0) for row in self.layers] or [0.0]
        lowest = min((min(row, default=0.0) for row in self.layers), default=0.0)
        return max(highest), float(highest.index(max(highest))), lowest, None


Weights = LayerWeights
"""The name under which the library interface exports `LayerWeights`."""

AnyKernel = Kernel | LayerWeights


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that fixes an edit, given the directions of a run.

    Attributes:
        direction_scope: Which direction a layer gets.
        direction_index: Fractional layer index, used by the scope `global` (None otherwise).
        kernels: (component, kernel) pairs, sorted by component, so that equal plans compare equal.
        row_normalization: The edit variant.
        rank: Number of directions removed: the first ones of each layer's basis.
    """

    direction_scope: DirectionScope
    direction_index: float | None
    kernels: tuple[tuple[str, AnyKernel], ...]
    row_normalization: RowNormalization
    rank: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be at least 1")
        if self.direction_scope not in get_args(DirectionScope):
            raise ValueError(f"unknown direction scope {self.direction_scope!r}")
        if self.row_normalization not in get_args(RowNormalization):
            raise ValueError(f"unknown row normalization {self.row_normalization!r}")
        if self.direction_scope == "global" and self.direction_index is None:
            raise ValueError("direction scope 'global' needs a direction_index")

    @classmethod
    def create(
        cls,
        *,
        direction_scope: DirectionScope,
        direction_index: float | None,
        kernels: Mapping[str, AnyKernel],
        row_normalization: RowNormalization,
        rank: int = 1,
    ) -> Plan:
        """Build a plan from a mapping of component, by its name or short name, to kernel.

        Raises:
            ValueError: A component is named twice, the scope or variant is unknown, or the rank is
                below 1.
        """
        named = {COMPONENT_ALIASES.get(name, name): kernel for name, kernel in kernels.items()}
        if len(named) < len(kernels):
            raise ValueError("a component has two kernels, under its name and its short name")
        return cls(
            direction_scope=direction_scope,
            direction_index=direction_index if direction_scope == "global" else None,
            kernels=tuple(sorted(named.items())),
            row_normalization=row_normalization,
            rank=rank,
        )

    def ablation_weights(self, component: str, layer: int) -> tuple[float, ...]:
        """Ablation weights of a component in a layer, one per direction; 0.0 without a kernel."""
        for name, kernel in self.kernels:
            if name == component:
                return kernel.ablation_weights(layer, self.rank)
        return (0.0,) * self.rank

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, from which `from_dict` makes an equal plan."""
        return {
            "direction_scope": self.direction_scope,
            "direction_index": self.direction_index,
            "kernels": {name: _kernel_to_dict(kernel) for name, kernel in self.kernels},
            "row_normalization": self.row_normalization,
            "rank": self.rank,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote.

        Raises:
            RunError: A field is missing or malformed.
        """
        try:
            return cls.create(
                direction_scope=data["direction_scope"],
                direction_index=_index(data["direction_index"]),
                kernels={name: _kernel(name, row) for name, row in data["kernels"].items()},
                row_normalization=data["row_normalization"],
                rank=parse.whole(data.get("rank", 1), "rank", 1, MOST_RANK),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise RunError(f"Not a plan: {reason}.") from error


def _index(value: object) -> float | None:
    index = None if value is None else float(parse.number(value, "direction_index"))
    if index is not None and index < 0:
        raise ValueError(f"direction_index is {index}, below the first layer")
    return index


def _weights(component: str, rows: object) -> Iterator[tuple[float, ...]]:
    """Read the ablation weights of each layer, a list of numbers per layer."""
    for layer, row in enumerate(rows if isinstance(rows, list) else [rows]):
        name = f"{component}.weights[{layer}]"
        if not isinstance(row, list):
            raise ValueError(f"{name} is {row!r}, not a list of numbers")
        yield tuple(float(parse.number(value, name)) for value in row)


def _kernel_to_dict(kernel: AnyKernel) -> dict[str, Any]:
    if isinstance(kernel, LayerWeights):
        return {"weights": [list(row) for row in kernel.layers]}
    return asdict(kernel)


def _kernel(component: str, row: object) -> AnyKernel:
    """Read a kernel that `to_dict` wrote: exactly four finite numbers, or weights."""
    row = row if isinstance(row, Mapping) else {}
    if set(row) == {"weights"}:
        return LayerWeights(tuple(_weights(component, row["weights"])))
    names = [part.name for part in fields(Kernel)]
    if set(row) != set(names):
        raise ValueError(f"the kernel of {component} must have exactly {', '.join(names)}")
    kernel = Kernel(*(float(parse.number(row[name], f"{component}.{name}")) for name in names))
    if kernel.min_weight_distance < 0:
        raise ValueError(f"{component}.min_weight_distance is negative")
    return kernel
