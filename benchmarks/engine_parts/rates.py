"""Seconds of work on a device, and its bandwidth. Needs torch alone, so that it starts fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

REPEATS = 5
"""Passes over all linear maps, or copies; the median counts."""

COPIED_BYTES = {"cuda": 2 * 2**30}
"""By device type; elsewhere `FEWER_BYTES`, which are still many times a processor's cache."""

FEWER_BYTES = 2**28


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a large copy on the device, reading and writing."""
    size = COPIED_BYTES.get(device.type, FEWER_BYTES)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def work() -> Tensor:
        return target.copy_(source)

    return 2 * size / median_seconds(work, lambda: synchronize(device))


def median_seconds(work: Callable[[], object], wait: Callable[[], None]) -> float:
    """Of one pass over the work, the device having done it; the first pass warms up."""
    found = []
    for _ in range(REPEATS + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])
