"""The importance matrix: how large the inputs of each linear map are, by our own hooks.

The quantiser weighs the error of each weight by the mean square of the input that it is multiplied
with (llama.cpp's `imatrix`). The map's output error is then least on such inputs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from heretic.model.core import Model
from heretic.prompts import Prompt

Floats = npt.NDArray[np.float32]

_OUTER = re.compile(r"\b(language_model|text_model)\.")
"""Parts of names by which a multimodal model sets its language model apart."""


class MeanSquares:
    """Sums of squared inputs of linear maps.

    Attributes:
        sums: float64 [inputs], by the module's name.
        counts: Number of tokens in each sum.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = defaultdict(int)

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """A forward pre-hook that adds the inputs of the module of that name."""

        def add(module: nn.Module, args: tuple[Any, ...]) -> None:
            del module
            rows = args[0].detach().reshape(-1, args[0].shape[-1])
            # Widened in pieces: the inputs of a large batch would not fit twice.
            found = sum(part.double().square().sum(dim=0) for part in rows.split(_PIECE))
            assert isinstance(found, Tensor)
            self.sums[name] = self.sums[name] + found if name in self.sums else found
            self.counts[name] += len(rows)

        return add

    def means(self) -> dict[str, Floats]:
        """The mean square of each input, float32 [inputs], by the module's name."""
        return {
            name: (total / self.counts[name]).to("cpu", torch.float32).numpy()
            for name, total in self.sums.items()
            if self.counts[name]
        }


_PIECE = 4096


@torch.inference_mode()
def mean_squares(
    model: Model, prompts: Sequence[Prompt], on_done: Callable[[int], None] | None = None
) -> dict[str, Floats]:
    """Mean square of each input of every linear map, over all tokens of the prompts.

    Prompts of equal length are run together, so that nothing is padded.

    Args:
        on_done: Called with the number of prompts that are done.

    Returns:
        float32 [inputs], by the module's name. A map that no token reached is left out.
    """
    found = MeanSquares()
    head = model.model.get_output_embeddings()
    with ExitStack() as stack:
        for name, module in model.model.named_modules():
            if isinstance(module, nn.Linear | Conv1D) and module is not head:
                stack.callback(module.register_forward_pre_hook(found.hook(name)).remove)
        done = 0
        for rows in _equally_long(model.encode_rows(prompts), model.batch_size):
            model.logits_after(rows)
            done += len(rows)
            if on_done is not None:
                on_done(done)
    return found.means()


def _equally_long(rows: Iterable[list[int]], most: int) -> Iterable[list[list[int]]]:
    """Rows of token ids in batches of equal length."""
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    for row in rows:
        by_length[len(row)].append(row)
    for same in by_length.values():
        for start in range(0, len(same), most):
            yield same[start : start + most]


def for_tensors(means: Mapping[str, Floats], names: Any) -> dict[str, Floats]:
    """The matrix by the names of tensors in a GGUF file.

    Args:
        means: From `mean_squares`.
        names: From `convert.tensor_names`.

    Returns:
        What has a name there. Where several maps are one tensor there, the mean of theirs: maps
        that the converter puts together read the same inputs.
    """
    parts: dict[str, list[Floats]] = defaultdict(list)
    for name, values in means.items():
        inner = _OUTER.sub("", name)
        candidates = (name, inner, inner.removeprefix("model."), f"model.{inner}")
        known = next(filter(None, (names.get_name(one) for one in candidates)), None)
        if known is not None:
            parts[f"{known}.weight"].append(values)
    return {
        name: np.mean(same, axis=0)
        for name, same in parts.items()
        if len({len(values) for values in same}) == 1
    }
