"""The machine's memory: how much there is, and how it is given back."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

KEPT_BYTES = 1 << 30
MAPPED_FROM = KEPT_BYTES, 32 << 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's mallopt


def accelerator() -> torch.device:
    """The accelerator that torch finds (CUDA, ROCm, XPU, MPS, NPU, ...), or the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")


def total(device: torch.device) -> int:
    """Bytes of the device's memory in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)


def free() -> None:
    """Return cached memory to the accelerator."""
    gc.collect()
    if accelerator().type != "cpu":
        torch.accelerator.empty_cache()


def keep_freed() -> None:
    """Let glibc's malloc keep what is freed, up to a gigabyte, for the next tensor.

    By default every activation of more than a few megabytes is a fresh mapping, whose pages are
    zeroed and faulted in one by one: a tenth to a fifth of an evaluation's time on a CPU. Does
    nothing where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Older releases refuse more than 32 MB; trimming alone would make things worse.
    if mallopt is not None and any(mallopt(_MMAP_THRESHOLD, size) for size in MAPPED_FROM):
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
