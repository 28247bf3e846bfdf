"""The machine: accelerator, memory, processor cores, versions of packages."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import heretic
from heretic.system.optional import installed

if TYPE_CHECKING:
    import torch

KEPT_BYTES = 1 << 30
MAPPED_FROM = KEPT_BYTES, 32 << 20
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""CPU quota and period of a container, in microseconds (control groups, version 2)."""

CORES_VARIABLE = "_HERETIC_CORES"
"""Variable with the number of cores that a job may use: others run beside it on this machine."""

MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""A container's limit of memory, in bytes (control groups, versions 2 and 1)."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's mallopt


def accelerator() -> torch.device:
    """The accelerator that torch finds (CUDA, ROCm, XPU, MPS, NPU, ...), or the CPU."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """The product name of a CUDA device; else the device type in upper case."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def total_memory(device: torch.device, limits: Iterable[Path] = MEMORY_LIMITS) -> int:
    """Total memory of the device, bytes; for other devices than CUDA what this process may take.

    Args:
        limits: Files with a container's limit; the first that holds one counts.
    """
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    total = int(psutil.virtual_memory().total)
    return min(total, memory_limit(limits) or total)


def memory_limit(files: Iterable[Path] = MEMORY_LIMITS) -> int | None:
    """The container's limit in bytes; None without one."""
    for file in files:
        try:
            return int(file.read_text(encoding="ascii"))
        except (OSError, ValueError):  # there is no such file, or no limit ("max")
            continue
    return None


def free_memory() -> None:
    """Collect garbage and return cached memory to the accelerator."""
    import torch

    gc.collect()
    if accelerator().type != "cpu":
        torch.accelerator.empty_cache()


def prepare_cpu() -> None:
    """Speed up work on a CPU: keep freed memory, and use no more threads than cores."""
    import torch

    _keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def usable_cores(cpu_max: Path = CPU_MAX) -> int:
    """Number of cores that this process may use: affinity, its share, the container's quota.

    More threads than that would wait for each other at every matrix product.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    share = os.environ.get(CORES_VARIABLE, "")
    if share.isdecimal():
        cores = max(1, min(cores, int(share)))
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or no limit ("max")
        return cores


def _keep_freed_memory() -> None:
    """Let glibc's malloc keep freed memory, up to a gigabyte, for the next tensor.

    By default every activation of more than a few megabytes is a new mapping, whose pages the
    kernel zeroes and maps one by one: a tenth to a fifth of an evaluation's time on a CPU. With
    another C library this function does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Older releases refuse more than 32 MB. Setting the trim threshold alone would be slower.
    if mallopt is not None and any(mallopt(_MMAP_THRESHOLD, size) for size in MAPPED_FROM):
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)


def cache_bytes_per_token(config: Any, attending: Sequence[int], hidden: int, itemsize: int) -> int:
    """Bytes of one token's keys and values in all layers.

    Args:
        config: Configuration of the text decoder.
        attending: 0-based indices of the layers that keep keys and values.
        hidden: Width of the residual stream.
        itemsize: Bytes per number.
    """
    per_layer = getattr(config, "per_layer_config", None)  # where layers differ (Gemma 4)
    each = [per_layer[index] if per_layer else config for index in attending]
    return int(sum(2 * _width_of_keys(one, hidden) * itemsize for one in each))


def _width_of_keys(config: Any, hidden: int) -> int:
    """Numbers in one token's keys in one layer, over all heads; 0 without attention heads."""
    queries = _largest(getattr(config, "num_attention_heads", None))
    heads = _largest(getattr(config, "num_key_value_heads", None)) or queries
    size = _largest(getattr(config, "head_dim", None)) or hidden // (queries or 1)
    return heads * size


def _largest(value: Any) -> int:
    """The largest integer in a value or list: some configurations list one per layer."""
    numbers = value if isinstance(value, list | tuple) else [value]
    return max((number for number in numbers if isinstance(number, int)), default=0)


PACKAGES = (
    "accelerate", "bitsandbytes", "datasets", "gguf", "huggingface-hub", "numpy", "optuna", "peft",
    "safetensors", "scipy", "tokenizers", "torch", "transformers",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python, Heretic, and the installed packages that can change a result."""
    found = {"python": platform.python_version(), "heretic-llm": heretic.__version__}
    have = {package: installed(package) for package in PACKAGES}
    return found | {package: version for package, version in have.items() if version is not None}


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What was found where something else was expected, in words; empty if all is the same."""
    names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    return ", ".join(
        f"{name} {found.get(name, 'none')} and not {expected.get(name, 'none')}" for name in names
    )


def hardware(device: torch.device) -> dict[str, Any]:
    """The hardware that results were computed on, JSON-ready; names neither host nor user."""
    import torch

    facts: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["accelerators"] = [
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        ]
        facts["accelerator_memory"] = properties.total_memory
        facts["cuda"] = torch.version.cuda or torch.version.hip
    return facts


def processor_name() -> str:
    """The processor's product name where the system tells it, else its architecture."""
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or sys.platform
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
