"""The formats of compressed-tensors, read and written by that library's own functions.

Everything is computed in float32: the library's own `decompress` would round to the dtype of the
scales, and NVFP4 to bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from heretic.quantised.cells import Cell, better, split
from heretic.quantised.kinds import NVFP4, PACKED

PARTS = ("packed", "weight", "scale", "zero_point", "global_scale", "shape")
"""Names of the parts of a packed weight, without `weight_`; `weight` is itself."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What a weight is made of, unpacked: w = (levels - zero point) * scale (/ global scale).

    Attributes:
        scale: float32, in the shape of the file.
        zero_point: One for each scale; None where zero is level 0.
        global_scale: float32 [1]; None where the format has none.
    """

    scale: Tensor
    zero_point: Tensor | None = None
    global_scale: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Compressed:
    """Reads and writes one packed weight.

    Attributes:
        format: The library's name of the format, e.g. `pack-quantized`.
        scheme: What it quantises by, a `QuantizationScheme` of the library.
    """

    format: str
    scheme: Any
    writes = True

    @property
    def _weights(self) -> Any:
        return self.scheme.weights

    @property
    def lead(self) -> str:
        """The part that holds the levels."""
        return "packed" if self.format in (PACKED, NVFP4) else "weight"

    @property
    def needed(self) -> tuple[str, ...]:
        """The parts that a weight of this format has."""
        more = {PACKED: ("shape",), NVFP4: ("global_scale",)}.get(self.format, ())
        zeros = () if self._weights.symmetric else ("zero_point",)
        return (self.lead, "scale", *more, *zeros)

    def shape(self, lead: tuple[int, ...], stated: Tensor | None) -> tuple[int, ...]:
        """Shape of the weight.

        Args:
            lead: The shape of its lead.
            stated: The content of the part `shape`, int64 [2], if there is one.
        """
        if stated is not None:
            return tuple(int(size) for size in stated)
        return (lead[0], 2 * lead[1]) if self.format == NVFP4 else lead

    def cell(self, shape: tuple[int, ...]) -> Cell:
        """What shares one scale in a weight of that shape."""
        strategy, weights = str(self._weights.strategy), self._weights
        if strategy == "block":
            return int(weights.block_structure[0]), int(weights.block_structure[1])
        if strategy == "tensor":
            return shape[-2], shape[-1]
        return 1, shape[-1] if strategy == "channel" else int(weights.group_size)

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight, float32 [d_out, d_in].

        Args:
            parts: As in the files, by the names in `PARTS`.
        """
        return self._read(self._unpacked(parts), self._opened(parts))

    def encode(self, weight: Tensor, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts of an edited weight; scales change only where others round it less.

        A global scale stays: programs that serve the model share it among several weights.

        Args:
            weight: float32 [d_out, d_in].
            parts: Those of the weight before the edit.
        """
        kept = self._opened(parts)
        made = self._made(weight, kept, parts["scale"].dtype)
        by_made, by_kept = (
            self._read(self._rounded(weight, each).float(), each) for each in (made, kept)
        )
        mask = better(weight, by_made, by_kept, self.cell(weight.shape))
        mask = mask.reshape(kept.scale.shape)
        scale = torch.where(mask, made.scale, kept.scale)
        zero = kept.zero_point
        if zero is not None and made.zero_point is not None:
            zero = torch.where(mask, made.zero_point.to(zero.dtype), zero)
        chosen = Levels(scale, zero, kept.global_scale)
        found = self._packed(self._rounded(weight, chosen))
        found["scale"] = scale.to(parts["scale"].dtype)
        if zero is not None:
            found["zero_point"] = self._packed_zeros(zero, parts["zero_point"])
        return found

    def _opened(self, parts: Mapping[str, Tensor]) -> Levels:
        """Scales and zero points as numbers."""
        zero, common = parts.get("zero_point"), parts.get("global_scale")
        scale = parts["scale"].float()
        if self._weights.symmetric:
            zero = None
        elif zero is not None and self.format == PACKED:
            from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

            shape = torch.Size((scale.shape[0], scale.shape[-1]))
            zero = unpack_from_int32(zero, self._weights.num_bits, shape, packed_dim=0)
        return Levels(scale, zero, None if common is None else common.float())

    def _packed_zeros(self, zero: Tensor, stored: Tensor) -> Tensor:
        if self.format != PACKED:
            return zero.to(stored.dtype)
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        found: Tensor = pack_to_int32(zero.to(torch.int8), self._weights.num_bits, packed_dim=0)
        return found.contiguous()

    def _unpacked(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The levels as float32 [d_out, d_in]."""
        found = parts.get("weight")
        if self.format == PACKED:
            from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

            shape = torch.Size(parts["shape"].tolist())
            found = unpack_from_int32(parts["packed"], self._weights.num_bits, shape)
        elif self.format == NVFP4:
            from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

            rows, pairs = parts["packed"].shape
            found = unpack_fp4_from_uint8(parts["packed"], rows, 2 * pairs, torch.float32)
        return cast("Tensor", found).float()

    def _packed(self, levels: Tensor) -> dict[str, Tensor]:
        if self.format == PACKED:
            from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

            return {"packed": pack_to_int32(levels, self._weights.num_bits)}
        if self.format == NVFP4:
            from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8

            return {"packed": pack_fp4_to_uint8(levels)}
        return {"weight": levels.contiguous()}

    def _rounded(self, weight: Tensor, by: Levels) -> Tensor:
        """The nearest levels [d_out, d_in], in the dtype in which they are packed."""
        from compressed_tensors.quantization.lifecycle.forward import quantize

        kinds = {PACKED: torch.int8, NVFP4: torch.float32}
        found: Tensor = quantize(
            x=weight,
            scale=torch.where(by.scale == 0, torch.ones_like(by.scale), by.scale),
            zero_point=by.zero_point,
            args=self._weights,
            dtype=kinds.get(self.format) or self._weights.pytorch_dtype(),
            global_scale=by.global_scale,
        )
        # The library makes 0 of a negative zero on a CPU, and keeps it on a GPU.
        return found.copysign(weight) if self.format == NVFP4 else found

    def _read(self, levels: Tensor, by: Levels) -> Tensor:
        from compressed_tensors.quantization.lifecycle.forward import dequantize

        found: Tensor = dequantize(
            x_q=levels,
            scale=by.scale,
            zero_point=by.zero_point,
            args=self._weights,
            dtype=torch.float32,
            global_scale=by.global_scale,
        )
        return found

    def _made(self, weight: Tensor, kept: Levels, stored: torch.dtype) -> Levels:
        """Scales and zero points of the weight's own, as the file's dtype holds them."""
        from compressed_tensors.quantization.utils import calculate_qparams

        cells = split(weight, self.cell(weight.shape))
        scale, zero = calculate_qparams(
            cells.amin(dim=(-3, -1)).reshape(kept.scale.shape),
            cells.amax(dim=(-3, -1)).reshape(kept.scale.shape),
            self._weights,
            global_scale=kept.global_scale,
        )
        most = torch.finfo(stored).max
        scale = scale.clamp(max=most).to(stored).float()
        return Levels(scale, None if kept.zero_point is None else zero, kept.global_scale)
