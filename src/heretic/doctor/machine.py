"""Checks of the machine: accelerator, processor, memory, disk."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from heretic.doctor.finding import Finding
from heretic.errors import HereticError
from heretic.system.display import bytes_text
from heretic.system.files import check_writable, expanded, free_bytes
from heretic.system.machine import (
    MEMORY_LIMITS,
    accelerator,
    device_name,
    memory_limit,
    processor_name,
    usable_cores,
)

if TYPE_CHECKING:
    import torch

DRIVERS = {
    Path("/proc/driver/nvidia/version"): ("an NVIDIA driver", "CUDA"),
    Path("/dev/kfd"): ("an AMD driver", "ROCm"),
}
"""Files that a driver of accelerators makes on Linux: what they tell, the build of torch for it."""

HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that hide accelerators if they are empty or -1."""

LEAST_MEMORY = 1.4e9
"""Bytes. The demo's search took as much at most (docs/lab-notes.md, 2026-11-24)."""

LEAST_FOR_RUNS, LEAST_FOR_MODELS = 0.1e9, 5e9
"""Bytes of disk: a run folder with its replies and directions; a model of 2B in half precision."""


def check_accelerator(drivers: Iterable[Path] = tuple(DRIVERS)) -> Finding:
    """Which accelerator torch finds, whether it computes, and how much of its memory is free."""
    name = "Accelerator"
    try:
        device = accelerator()
        if device.type == "cpu":
            return _without_accelerator(name, [path for path in drivers if path.exists()])
        _multiply(device)
    except (ImportError, OSError, RuntimeError) as error:  # a library is missing, or a kernel
        said = " ".join(str(error).split())
        return Finding(
            name,
            "problem",
            f"torch does not work here: {said}",
            "Install a PyTorch that fits this machine and its driver (docs/installing.md).",
        )
    return _accelerator(name, device)


def _without_accelerator(name: str, drivers: list[Path]) -> Finding:
    import torch

    if not drivers:
        return Finding(name, "note", "None: models run on the processor.")
    hiding = [variable for variable in HIDING if os.environ.get(variable) in ("", "-1")]
    if hiding:
        return Finding(name, "note", f"Hidden by {hiding[0]}: models run on the processor.")
    told, build = DRIVERS[drivers[0]]
    return Finding(
        name,
        "note",
        f"This machine has {told}, but PyTorch {torch.__version__} finds no device it can use: "
        "models run on the processor.",
        f"If there is an accelerator beside integrated graphics: install a PyTorch for {build} "
        "that fits the driver (docs/installing.md), or see why the device is hidden (a container "
        "without access).",
    )


def _multiply(device: torch.device) -> None:
    """A product on the device: a build without code for this chip fails here."""
    import torch

    square = torch.ones(64, 64, device=device, dtype=torch.float16)
    (square @ square).sum().item()


def _accelerator(name: str, device: torch.device) -> Finding:
    import torch

    if device.type != "cuda":
        return Finding(name, "ok", f"{device_name(device)}, by PyTorch {torch.__version__}.")
    build = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    parts, busy = [], False
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        busy = busy or free < 0.8 * total
        parts.append(
            f"{torch.cuda.get_device_name(index)}, {bytes_text(free)} of {bytes_text(total)} free"
        )
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    half = "native bfloat16" if native else "no native bfloat16"
    found = f"{'; '.join(parts)}; {build}, {half}."
    if busy:
        return Finding(
            name,
            "note",
            found,
            "Batches are sized by the whole memory: end other programs there, or set batch_size.",
        )
    remedy = "" if native else "Set dtypes to float16 and float32: bfloat16 is emulated and slow."
    return Finding(name, "ok" if native else "note", found, remedy)


def check_processor() -> Finding:
    """The processor, its cores and the instruction sets that matter for speed."""
    import torch

    from heretic.model.loading import cpu_has_bfloat16

    cores, native = usable_cores(), cpu_has_bfloat16()
    sets = torch.backends.cpu.get_cpu_capability()
    half = "native bfloat16" if native else "no native bfloat16"
    found = f"{processor_name()}, {cores} cores usable; {sets}, {half}."
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > cores:
        return Finding(
            "Processor",
            "note",
            f"{found} OMP_NUM_THREADS is {asked}.",
            f"Set OMP_NUM_THREADS to {cores} at most: threads that wait for a core cost time.",
        )
    if not native and _computes():
        return Finding(
            "Processor",
            "note",
            f"{found} Models are computed in float32, several times slower.",
            "A processor with AVX512-BF16, AMX or Arm's BF16 is faster, an accelerator more so.",
        )
    return Finding("Processor", "ok", found)


def _computes() -> bool:
    """Whether models run on the processor."""
    try:
        return accelerator().type == "cpu"
    except (ImportError, OSError, RuntimeError):
        return True


def check_memory(limits: Iterable[Path] = MEMORY_LIMITS) -> Finding:
    """The machine's memory, what is free of it, and a container's limit."""
    import psutil

    memory = psutil.virtual_memory()
    limit = memory_limit(limits)
    found = f"{bytes_text(memory.total)}, of which {bytes_text(memory.available)} are free."
    if limit is not None and limit < memory.total:
        found += f" The container may take {bytes_text(limit)}."
    if min(memory.available, limit or memory.available) < LEAST_MEMORY:
        least = bytes_text(LEAST_MEMORY)
        return Finding(
            "Memory",
            "problem",
            found,
            f"Even the demo's model of 135M takes {least}: end other programs.",
        )
    return Finding("Memory", "ok", found)


def check_runs_folder(folder: Path) -> Finding:
    """Whether run folders can be made, and what the disk has left."""
    return _disk("Run folders", folder, "study_checkpoint_dir", LEAST_FOR_RUNS, required=True)


def check_hub_cache() -> Finding:
    """Whether the Hub's cache can be written, and what its disk has left."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    return _disk("Hub cache", folder, "HF_HOME", LEAST_FOR_MODELS, required=False)


def _disk(name: str, folder: Path, setting: str, least: float, *, required: bool) -> Finding:
    """A folder that is written to.

    Args:
        setting: What names another folder.
        least: Bytes that should be free.
        required: Whether commands fail without it; else only downloads do.
    """
    folder = expanded(folder).absolute()
    remedy = f"Name another folder by {setting}, or free some space."
    try:
        check_writable(folder)
        free = free_bytes(folder)
    except (HereticError, OSError) as error:
        said = error.message if isinstance(error, HereticError) else str(error)
        return Finding(name, "problem" if required else "note", said, remedy)
    found = f"{folder}, {bytes_text(free)} free."
    if free >= least:
        return Finding(name, "ok", found)
    return Finding(name, "problem" if required else "note", found, remedy)


def check_system() -> Finding:
    """The operating system."""
    found = f"{platform.system()} {platform.release()}, {platform.machine()}."
    if platform.system() == "Windows":
        return Finding(
            "System", "note", found, "Nothing was tested on Windows; use WSL if something fails."
        )
    return Finding("System", "ok", found)
