"""What directions say of themselves: cosines between them, and the tokens they stand for.

Data functions over numpy arrays; `heretic.report.page.directions` draws what they give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heretic.errors import HereticError

Floats = NDArray[np.float64]


def cosine_map(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """Cosines of every vector of one set with every vector of another.

    Args:
        first: [n, hidden], any floating dtype.
        second: [m, hidden], such as the directions of another run.

    Returns:
        float64 [n, m]; NaN where a vector is zero.

    Raises:
        HereticError: The widths differ, so that the vectors lie in different spaces.
    """
    if first.shape[-1] != second.shape[-1]:
        raise HereticError(
            f"Directions of width {first.shape[-1]} and of width {second.shape[-1]} cannot be "
            "compared: they lie in different spaces.",
            remedy="Compare runs of one model, or of models trained from one another.",
        )
    left, right = (_units(vectors.astype(np.float64)) for vectors in (first, second))
    return np.clip(left @ right.T, -1.0, 1.0)  # NaN stays


def _units(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = vectors / norms
    return np.where(norms > 0, found, np.nan)


@dataclass(frozen=True, slots=True)
class TokenWeight:
    """What a direction does to one token.

    Attributes:
        text: The token's text.
        logit: What the direction adds to its logit, up to a factor common to all tokens.
        deviations: The same as its distance from the mean of all tokens, in standard deviations.
    """

    id: int
    text: str
    logit: float
    deviations: float


@dataclass(frozen=True, slots=True)
class LayerWords:
    """The tokens that a layer's direction stands for.

    Attributes:
        promoted: Made likeliest by the direction, the most promoted first.
        suppressed: Made least likely, the most suppressed first.
    """

    layer: int
    promoted: tuple[TokenWeight, ...]
    suppressed: tuple[TokenWeight, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def layer_words(
    logits: NDArray[Any],
    layers: Sequence[int],
    texts: Callable[[Sequence[int]], list[str]],
    top: int,
) -> list[LayerWords]:
    """Rank the tokens of each layer.

    Args:
        logits: [n, tokens], from `heretic.model.lens.token_logits`.
        layers: The number of the layer of each row. Rows of zeros, which stand for layers without
            a direction, are left out.
        texts: Gives the texts of token ids.
        top: Most tokens of each kind.
    """
    found = []
    for layer, row in zip(layers, logits.astype(np.float64), strict=True):
        spread = row.std()
        if spread == 0:
            continue
        order = np.argsort(-row, kind="stable")
        top = min(top, len(order) // 2)
        kinds = []
        for ids in (order[:top], order[::-1][:top]):
            named = zip(ids.tolist(), texts(ids.tolist()), strict=True)
            kinds.append(
                tuple(
                    TokenWeight(
                        number, text, float(row[number]), float((row[number] - row.mean()) / spread)
                    )
                    for number, text in named
                )
            )
        found.append(LayerWords(layer, *kinds))
    return found
