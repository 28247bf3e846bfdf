"""Changes the residual stream after layers, without changing a weight.

Adding a constant vector is activation addition, Turner et al. 2023 (arXiv 2308.10248). With the
mean difference of two sets of prompts as the vector it is contrastive activation addition, Rimsky
et al. 2024 (arXiv 2312.06681). Taking a direction out is directional ablation, Arditi et al. 2024
(arXiv 2406.11717), section 2.4, here at the output of chosen layers only. Both act at every
position, as llama.cpp's control vectors do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from heretic.architectures.resolver import first_tensor
from heretic.architectures.streams import carries_several
from heretic.errors import UnsupportedModelError


def check_strength(strength: float) -> float:
    """Return a strength that is a finite number.

    Raises:
        ValueError: It is not.
    """
    if not math.isfinite(strength):
        raise ValueError(f"a strength is a finite number, not {strength}")
    return strength


class StreamChange(ABC):
    """A change of the outputs of layers, by one vector for each layer.

    Args:
        layers: The decoder layers, in order.
        vectors: [layers + 1, hidden]; row l + 1 belongs to layer l, and row 0 must be zero. A row
            of zeros leaves its layer without a hook.

    Raises:
        ValueError: The shape is another one, a number is not finite, or row 0 is not zero.
        UnsupportedModelError: A layer carries several residual streams.
    """

    def __init__(self, layers: Sequence[nn.Module], vectors: Tensor) -> None:
        if vectors.dim() != 2 or len(vectors) != len(layers) + 1:
            raise ValueError(
                f"vectors of shape {tuple(vectors.shape)} cannot change {len(layers)} layers: "
                f"the shape must be [{len(layers) + 1}, hidden]"
            )
        if not vectors.isfinite().all() or vectors[0].any():
            raise ValueError("vectors must be finite, and row 0 (embeddings) zero")
        for layer in layers:
            if carries_several(layer):
                raise UnsupportedModelError(
                    f"Layers of type {type(layer).__name__} carry several residual streams, so "
                    "no single vector can be added to their output or taken out of it.",
                    remedy="Use a trial's edit instead.",
                )
        self._changed = [
            (layer, vector)
            for layer, vector in zip(layers, vectors[1:], strict=True)
            if vector.any()
        ]
        self._on = True

    def use(self, index: int) -> None:
        """Change the outputs (0), or act as the original (1)."""
        self._on = index == 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Change the outputs while the context lasts; no weight is changed."""
        with ExitStack() as stack:
            for layer, vector in self._changed:
                stack.callback(layer.register_forward_hook(self._hook(vector)).remove)
            yield

    def _hook(self, vector: Tensor) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if not self._on:
                return None
            hidden = first_tensor(output)
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            found = self.changed(hidden.to(dtype), vector.to(hidden.device, dtype)).to(hidden.dtype)
            if isinstance(output, Tensor):
                return found
            return type(output)((found, *output[1:]))

        return hook

    @abstractmethod
    def changed(self, hidden: Tensor, vector: Tensor) -> Tensor:
        """What becomes of a layer's output.

        Args:
            hidden: [rows, tokens, hidden], in float32 or a wider dtype.
            vector: The layer's vector, [hidden], same dtype.
        """


class Steering(StreamChange):
    """Vectors that are added to the outputs of layers."""

    def changed(self, hidden: Tensor, vector: Tensor) -> Tensor:
        """The sum."""
        return hidden + vector


class Removal(StreamChange):
    """Directions that are taken out of the outputs of layers: x - d (d . x), d of length 1."""

    def __init__(self, layers: Sequence[nn.Module], vectors: Tensor) -> None:
        super().__init__(layers, vectors)
        self._changed = [(layer, vector / vector.norm()) for layer, vector in self._changed]

    def changed(self, hidden: Tensor, vector: Tensor) -> Tensor:
        """The part orthogonal to the direction."""
        return hidden - (hidden @ vector).unsqueeze(-1) * vector
