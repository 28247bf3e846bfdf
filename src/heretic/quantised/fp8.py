"""FP8 with a scale for each block or tensor, as DeepSeek and Qwen publish it (`weight_scale_inv`).

w = q * s, q being e4m3 (DeepSeek-AI 2024, arXiv 2412.19437, section 3.3; the name of the scales is
a historical accident: they multiply).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from heretic.quantised.cells import Cell, better, split, spread

MOST = torch.finfo(torch.float8_e4m3fn).max

EXPONENT_BIAS = 127
"""A scale of eight bits is 2 ** (byte - 127)."""


@dataclass(frozen=True, slots=True)
class BlockFp8:
    """Reads and writes one packed weight.

    Attributes:
        block: Rows and columns of a block; None if the tensor has one scale.
        powers_of_two: Whether scales are powers of two (`ue8m0`).
    """

    block: Cell | None
    powers_of_two: bool = False
    writes = True

    def cell(self, shape: tuple[int, ...]) -> Cell:
        """What shares one scale in a weight of that shape."""
        return self.block or (shape[-2], shape[-1])

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight, float32 [..., d_out, d_in].

        Args:
            parts: `weight`, e4m3 [..., d_out, d_in], and `scale`, [..., r, c] or one number.
        """
        weight = parts["weight"]
        scale = self._grid(parts["scale"])
        return weight.float().mul_(spread(scale, self.cell(weight.shape), weight.shape))

    def encode(self, weight: Tensor, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts of an edited weight; scales change only where others round it less.

        Args:
            weight: float32 [..., d_out, d_in].
            parts: Those of the weight before the edit.
        """
        cell, stored = self.cell(weight.shape), parts["scale"]
        kept = self._grid(stored)
        largest = split(weight.abs(), cell).amax(dim=(-3, -1)) / MOST
        made = self._grid(_as_stored(self._rounded_up(largest), stored))

        def packed(scale: Tensor) -> Tensor:
            nonzero = torch.where(scale == 0, torch.ones_like(scale), scale)
            levels = weight / spread(nonzero, cell, weight.shape)
            return levels.clamp_(-MOST, MOST).to(torch.float8_e4m3fn)

        def read_back(scale: Tensor) -> Tensor:
            return packed(scale).float().mul_(spread(scale, cell, weight.shape))

        is_better = better(weight, read_back(made), read_back(kept), cell)
        scale = torch.where(is_better, made, kept)
        return {
            "weight": packed(scale),
            "scale": _as_stored(scale, stored).reshape(stored.shape),
        }

    def _grid(self, stored: Tensor) -> Tensor:
        """Scales as float32 [..., r, c]."""
        scale = _numbers(stored)
        return scale if self.block is not None else scale.reshape(*_stacked(scale), 1, 1)

    def _rounded_up(self, scale: Tensor) -> Tensor:
        return torch.exp2(torch.ceil(torch.log2(scale))) if self.powers_of_two else scale


def _stacked(scale: Tensor) -> tuple[int, ...]:
    """The number of matrices that one-number scales belong to, if there are several."""
    return () if scale.numel() == 1 else (scale.numel(),)


def _numbers(stored: Tensor) -> Tensor:
    if stored.dtype == torch.uint8:
        return torch.exp2(stored.float() - EXPONENT_BIAS)
    return stored.float()


def _as_stored(scale: Tensor, stored: Tensor) -> Tensor:
    """Scales in the dtype of the file."""
    if stored.dtype == torch.uint8:
        exponents = torch.log2(scale) + EXPONENT_BIAS
        return exponents.nan_to_num(neginf=0).round().clamp(0, 254).to(torch.uint8)
    return scale.to(stored.dtype)
