"""Kernels and plans: which edit a trial makes.

Everything here is frozen, comparable and serialisable, and needs no torch: a worker on another
machine needs only a `Plan`, the run's directions, and the fits that the plan names.
"""

from __future__ import annotations

import re
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

FITS = "fits"
"""Folder of the files of fits."""

_DIGEST = re.compile(r"[0-9a-f]{16,64}")

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


@dataclass(frozen=True, slots=True)
class FittedKernel:
    """The vectors of a fit (`heretic.method.fits.Fit`), in place of directions and weights.

    Attributes:
        fit: The fit's digest.
        position: Place on the fit's path. Between two of its points, write and read vectors are
            interpolated separately, so that the rank stays the same.
        scale: Factor of the write vectors in every layer: the fit as found at 1, no edit at 0.
    """

    fit: str
    position: float
    scale: float = 1.0

    def ablation_weights(self, layer: int, rank: int) -> tuple[float, ...]:
        """The scale, once for each of `rank` pairs of vectors."""
        return (self.scale,) * rank

    def figures(self) -> tuple[float, float]:
        """The kernel's figures for tables, in the order of `FIT_FIGURES`."""
        return self.position, self.scale


FIT_FIGURES = ("position", "scale")
"""Headings of `FittedKernel.figures()`."""


AnyKernel = Kernel | LayerWeights | FittedKernel


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that fixes an edit, given the directions of a run.

    Attributes:
        direction_scope: Which direction a layer gets.
        direction_index: Fractional layer index, used by the scope `global` (None otherwise).
        kernels: (component, kernel) pairs, sorted by component, so that equal plans compare equal.
        row_normalization: The edit variant.
        rank: Number of directions removed: the first ones of each layer's basis. For fitted
            kernels the rank of the fit.
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
        if len({isinstance(kernel, FittedKernel) for _, kernel in self.kernels}) > 1:
            raise ValueError("some kernels are of a fit, others are not")

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

    @property
    def fits(self) -> tuple[str, ...]:
        """Digests of the fits whose vectors the plan uses, each once, sorted."""
        kernels = [kernel for _, kernel in self.kernels if isinstance(kernel, FittedKernel)]
        return tuple(sorted({kernel.fit for kernel in kernels}))

    @property
    def figure_names(self) -> tuple[str, ...]:
        """Headings of the figures of its kernels."""
        return FIT_FIGURES if self.fits else KERNEL_FIGURES

    def kernel(self, component: str) -> AnyKernel | None:
        """The kernel of a component; None if the plan leaves it alone."""
        return dict(self.kernels).get(component)

    def ablation_weights(self, component: str, layer: int) -> tuple[float, ...]:
        """Ablation weights of a component in a layer, one per direction; 0.0 without a kernel."""
        kernel = self.kernel(component)
        return (0.0,) * self.rank if kernel is None else kernel.ablation_weights(layer, self.rank)

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


def fit_file(digest: str) -> str:
    """Path of the file that holds a fit's vectors, below a run folder or an export.

    Not beside a model's weights: some programs load every safetensors file that lies there.
    """
    return f"{FITS}/fit-{digest}.safetensors"


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


def _fitted(component: str, row: Mapping[str, Any]) -> FittedKernel:
    """Read a fitted kernel: a digest, a position that is not negative, a scale."""
    if not isinstance(row["fit"], str) or not _DIGEST.fullmatch(row["fit"]):
        raise ValueError(f"{component}.fit is {row['fit']!r}, not the digest of a fit")
    position = float(parse.number(row["position"], f"{component}.position"))
    if position < 0:
        raise ValueError(f"{component}.position is negative")
    return FittedKernel(
        row["fit"], position, float(parse.number(row["scale"], f"{component}.scale"))
    )


def _kernel(component: str, row: object) -> AnyKernel:
    """Read a kernel that `to_dict` wrote: four finite numbers, weights, or a place on a fit."""
    row = row if isinstance(row, Mapping) else {}
    if set(row) == {"weights"}:
        return LayerWeights(tuple(_weights(component, row["weights"])))
    if set(row) == {"fit", "position", "scale"}:
        return _fitted(component, row)
    names = [part.name for part in fields(Kernel)]
    if set(row) != set(names):
        raise ValueError(f"the kernel of {component} must have exactly {', '.join(names)}")
    kernel = Kernel(*(float(parse.number(row[name], f"{component}.{name}")) for name in names))
    if kernel.min_weight_distance < 0:
        raise ValueError(f"{component}.min_weight_distance is negative")
    return kernel
