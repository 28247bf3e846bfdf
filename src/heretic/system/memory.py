"""Halving a batch when memory runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch

from heretic.errors import ModelError
from heretic.system import machine


def halved(batch_size: int, error: RuntimeError) -> int:
    """Half the batch after running out of memory, which is given back first.

    Raises:
        RuntimeError: `error` is about something else.
        ModelError: The batch is a single row already.
    """
    # Some backends raise a plain RuntimeError.
    if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
        raise error
    machine.free_memory()
    if batch_size == 1:
        raise ModelError(
            "Out of memory with a single prompt.",
            remedy="Set quantization, a shorter max_response_length, or max_memory.",
        ) from error
    return batch_size // 2


def halving(
    items: int, batch_size: int, work: Callable[[slice], None], notify: Callable[[int], None]
) -> int:
    """Do `work` on slices of `items`; out of memory halves the batch and repeats that slice.

    Returns:
        The batch size that fitted.

    Raises:
        ModelError: Even one item does not fit.
    """
    start = 0
    while start < items:
        try:
            work(slice(start, min(start + batch_size, items)))
        except RuntimeError as error:
            batch_size = halved(batch_size, error)
            notify(batch_size)
            continue
        start += batch_size
    return batch_size
