"""Formats that are read and not written: GPTQ, AWQ and MXFP4.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) and AWQ (Lin et al. 2023, arXiv 2306.00978) in the
layouts of AutoGPTQ, GPTQModel and AutoAWQ; MXFP4 as in the OCP Microscaling Formats 1.0 and
gpt-oss. Their scales were calibrated on data, or are shared with kernels that expect them so; an
edited weight is saved unquantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 32
"""Bits of the integers that numbers are packed into."""

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AutoAWQ puts each of eight neighbours in a word."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of four bits without their sign."""

MXFP4_GROUP = 32
EXPONENT_BIAS = 127


def unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """The numbers in int32 words, the lowest bits first.

    Args:
        words: int32 [rows, columns].
        dim: The dimension along which numbers are packed, 0 or 1.

    Returns:
        int32, longer by 32 / bits in that dimension.
    """
    shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
    shape = (1, -1, 1) if dim == 0 else (1, 1, -1)
    numbers: Tensor = (words.unsqueeze(dim + 1) >> shifts.view(shape)) & (2**bits - 1)
    return numbers.flatten(dim, dim + 1)


@dataclass(frozen=True, slots=True)
class Gptq:
    """Reads one weight that GPTQ packed.

    Attributes:
        zeros_less_one: Whether stored zero points are one less than what they mean (version 1).
    """

    bits: int
    group: int
    zeros_less_one: bool
    writes = False

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight, float32 [d_out, d_in].

        Args:
            parts: `qweight` int32 [d_in / n, d_out], `qzeros` int32 [groups, d_out / n], `scales`
                [groups, d_out], and maybe `g_idx` int32 [d_in], the group of each input.
        """
        levels = unpacked(parts["qweight"], self.bits, 0)
        zeros = unpacked(parts["qzeros"], self.bits, 1)
        if self.zeros_less_one:
            zeros = (zeros + 1) & (2**self.bits - 1)
        size = self.group if self.group > 0 else len(levels)
        groups = parts.get("g_idx")
        groups = torch.arange(len(levels)) // size if groups is None else groups.long()
        scales = parts["scales"].float()
        return ((levels - zeros[groups]) * scales[groups]).T.contiguous()


@dataclass(frozen=True, slots=True)
class Awq:
    """Reads one weight that AutoAWQ packed (version `gemm`)."""

    group: int
    writes = False

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight, float32 [d_out, d_in].

        Args:
            parts: `qweight` int32 [d_in, d_out / 8], `qzeros` int32 [groups, d_out / 8], `scales`
                [groups, d_out].
        """
        levels, zeros = (self._ordered(unpacked(parts[n], 4, 1)) for n in ("qweight", "qzeros"))
        size = self.group if self.group > 0 else len(levels)
        groups = torch.arange(len(levels)) // size
        return ((levels - zeros[groups]) * parts["scales"].float()[groups]).T.contiguous()

    @staticmethod
    def _ordered(numbers: Tensor) -> Tensor:
        rows, columns = numbers.shape
        words = numbers.view(rows, columns // len(AWQ_ORDER), len(AWQ_ORDER))
        return words[:, :, list(AWQ_ORDER)].flatten(1)


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """Reads the stacked weights of a layer's experts in gpt-oss."""

    writes = False

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weights, bfloat16 [experts, d_in, d_out], which holds each exactly.

        Args:
            parts: `blocks` uint8 [experts, d_out, d_in / 32, 16], two numbers in a byte, the lower
                bits first; `scales` uint8 [experts, d_out, d_in / 32], exponents of two.
        """
        blocks = parts["blocks"]
        values = torch.tensor([*E2M1, *(-value for value in E2M1)], dtype=torch.bfloat16)
        numbers = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2).int()
        scales = torch.exp2(parts["scales"].float() - EXPONENT_BIAS).to(torch.bfloat16)
        weights = values[numbers] * scales.unsqueeze(-1)
        return weights.flatten(-2).transpose(-1, -2).contiguous()
