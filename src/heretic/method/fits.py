"""Fits: vectors of edits that were found by the gradient, along a path of trade-offs.

A plan names a fit by its digest, and a place on its path (`heretic.records.plan.FittedKernel`). The
vectors lie in a file beside the plan, in the run folder and in every export.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from heretic.method.edits import Vectors

_DIGITS = 32
"""Hexadecimal digits of a digest: half a SHA-256."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Vectors for every component and layer at the points of a path.

    All writers of one component in one layer share them, such as the experts of a block. They live
    in the space of the writers' outputs, before a norm that follows.

    Attributes:
        components: Names of the components, sorted, in the order of the second dimension.
        write: u, float32 [points, components, layers, k, hidden]; zeros where nothing is edited.
        read: q, same shape.
    """

    components: tuple[str, ...]
    write: Tensor
    read: Tensor

    def __post_init__(self) -> None:
        if self.write.dim() != 5 or self.write.shape != self.read.shape:
            raise ValueError(
                f"write vectors of shape {tuple(self.write.shape)}, read vectors of shape "
                f"{tuple(self.read.shape)}; both must be [points, components, layers, k, hidden]"
            )
        if len(self.components) != self.write.shape[1] or not self.write.numel():
            raise ValueError(
                f"vectors of {self.write.shape[1]} components, names of {len(self.components)}"
            )
        if list(self.components) != sorted(self.components):
            raise ValueError("the names of the components are not sorted")
        if not all(part.dtype == torch.float32 for part in (self.write, self.read)):
            raise ValueError("the vectors are not float32")
        if not all(bool(part.isfinite().all()) for part in (self.write, self.read)):
            raise ValueError("some vectors are not finite")

    @property
    def points(self) -> int:
        """Number of points of the path."""
        return len(self.write)

    @property
    def rank(self) -> int:
        """Number of pairs of vectors for each component and layer."""
        return self.write.shape[3]

    @cached_property
    def digest(self) -> str:
        """What plans name the fit by: it depends on every number, shape and name."""
        shape = [list(self.components), list(self.write.shape)]
        found = hashlib.sha256(json.dumps(shape).encode())
        for part in (self.write, self.read):
            found.update(part.contiguous().numpy().astype("<f4").tobytes())
        return found.hexdigest()[:_DIGITS]

    def at(self, component: str, layer: int, position: float) -> Vectors | None:
        """The vectors [k, hidden] of a component in a layer; None where nothing is edited.

        Args:
            position: Place on the path, which is clamped at its end. Between two points, write and
                read vectors are interpolated separately.
        """
        if component not in self.components or layer >= self.write.shape[2]:
            return None
        place = min(max(position, 0.0), float(self.points - 1))
        lower = int(place)
        upper = min(lower + 1, self.points - 1)
        number = self.components.index(component)
        write, read = (
            torch.lerp(part[lower, number, layer], part[upper, number, layer], place - lower)
            for part in (self.write, self.read)
        )
        return Vectors(write, read) if write.any() and read.any() else None

    def content(self) -> bytes:
        """The fit as a safetensors file: a tensor `write.COMPONENT` and a `read.COMPONENT` each."""
        from safetensors.torch import save

        parts = {"write": self.write, "read": self.read}
        return save(
            {
                f"{name}.{component}": part[:, number].contiguous()
                for name, part in parts.items()
                for number, component in enumerate(self.components)
            }
        )

    @classmethod
    def from_content(cls, content: bytes) -> Fit:
        """Read what `content` returned.

        Raises:
            ValueError: It is something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(content)
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(str(error)) from error
        components = sorted(name.removeprefix("write.") for name in tensors if name[0] == "w")
        wanted = {f"{part}.{name}" for part in ("write", "read") for name in components}
        if not components or set(tensors) != wanted:
            raise ValueError(f"it holds {', '.join(sorted(tensors)) or 'nothing'}")
        try:
            write, read = (
                torch.stack([tensors[f"{part}.{name}"] for name in components], dim=1)
                for part in ("write", "read")
            )
        except RuntimeError as error:
            raise ValueError("the shapes of its tensors differ") from error
        return cls(tuple(components), write, read)
