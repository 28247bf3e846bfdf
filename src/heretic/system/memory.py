"""Halve a batch when memory runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch

from heretic.errors import ModelError
from heretic.system import machine


def ran_out(error: BaseException) -> bool:
    """Whether an error is about memory; some backends raise a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def halved(batch_size: int, error: RuntimeError) -> int:
    """Free memory and halve the batch size after running out of memory.

    Raises:
        RuntimeError: `error` itself, if it is not about memory.
        ModelError: The batch has a single row already.
    """
    if not ran_out(error):
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
    """Do `work` on slices of `items` items; running out of memory halves and repeats a slice.

    Args:
        items: Number of items.
        batch_size: Items per slice, at first.
        work: Called with each slice; repeated with a smaller one after running out of memory.
        notify: Called with each smaller batch size.

    Returns:
        The last batch size, which fitted.

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
