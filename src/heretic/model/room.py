"""How many rows fit into a device's memory, by the sizes of a model."""

from __future__ import annotations

from dataclasses import dataclass

ASSUMED_PROMPT_TOKENS = 256
"""Prompt length in tokens for which the automatic batch size leaves room."""

ROWS_SHARE = 0.25
"""Most of a device's memory that rows may take; fits and states of the original need the rest."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the memory of a search depends on, of a model.

    Attributes:
        weights: Bytes of all weights.
        layers: Number of decoder layers.
        hidden: Width of the residual stream.
        vocabulary: Number of tokens that are predicted.
        cache_per_token: Bytes of a token's keys and values in all layers.
        itemsize: Bytes of a number that is computed.
        carried: Bytes of a row's states that do not grow with its length, in all layers.
    """

    weights: int
    layers: int
    hidden: int
    vocabulary: int
    cache_per_token: int
    itemsize: int
    carried: int = 0

    def row(self, tokens: int) -> int:
        """Bytes that a row of that many tokens takes while it is decoded."""
        grows = self.cache_per_token * tokens + 16 * tokens * self.hidden
        return grows + 8 * self.vocabulary + self.carried


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a model, whatever format its numbers have.

    Attributes:
        parameters: Number of weights.
        linear: Of these, in the layers' linear maps, which can be quantised.
        layers: Number of decoder layers.
        hidden: Width of the residual stream.
        vocabulary: Number of tokens that are predicted.
        cached: Numbers of a token's keys and values in all layers.
        carried: As `Sizes.carried`: bytes, whatever the numbers that are computed have.
    """

    parameters: int
    linear: int
    layers: int
    hidden: int
    vocabulary: int
    cached: int
    carried: int = 0

    def sizes(self, itemsize: int, bits: int = 0) -> Sizes:
        """What the memory of a search depends on.

        Args:
            itemsize: Bytes of a number that is computed, and of a weight that is not quantised.
            bits: Of a quantised weight; 0 without quantisation.
        """
        of_linear = self.linear * bits // 8 if bits else self.linear * itemsize
        return Sizes(
            weights=(self.parameters - self.linear) * itemsize + of_linear,
            layers=self.layers,
            hidden=self.hidden,
            vocabulary=self.vocabulary,
            cache_per_token=self.cached * itemsize,
            itemsize=itemsize,
            carried=self.carried,
        )


def fitting_rows(sizes: Sizes, total: int, tokens: int) -> int:
    """Most rows of that many tokens that are decoded together, at least 1.

    They take at most a quarter of the memory, and at most half of what the weights leave.

    Args:
        total: Bytes of the device.
    """
    left = max(total - sizes.weights, 0) // 2
    return max(1, min(int(total * ROWS_SHARE), left) // sizes.row(tokens))


def batch_size(fitting: int, most: int) -> int:
    """The automatic batch size: the largest power of two that fits, and at most `most`."""
    return min(most, 1 << (fitting.bit_length() - 1))
