"""The memory that a search may count on: not all that a machine has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""A container's limit of memory, in bytes (control groups, versions 2 and 1)."""

RESERVE = 0.05
"""Share of the memory that the system, the libraries and the driver are taken to need."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory in bytes.

    Attributes:
        usable: What a search may count on while nothing else runs.
        free: What is free of that now.
        devices: Accelerators of this kind that are here; the figures are one's. 0 for a CPU.
    """

    usable: int
    free: int
    devices: int = 0

    def to_dict(self) -> dict[str, int]:
        """Plain data for `--json`."""
        return asdict(self)


def room_of(device: torch.device, total: int, limits: Iterable[Path] = MEMORY_LIMITS) -> Room:
    """The room on a device; a container's limit counts where its memory is the machine's.

    Args:
        total: Bytes of the device.
        limits: Files with a container's limit.
    """
    import torch

    count = 0 if device.type == "cpu" else torch.accelerator.device_count()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        import psutil

        limit = limit_in(limits)
        free = psutil.virtual_memory().available
        if limit is not None:
            total, free = min(total, limit), min(free, limit)
    usable = int((1 - RESERVE) * total)
    return Room(usable, min(free, usable), count)


def limit_in(files: Iterable[Path]) -> int | None:
    """The container's limit in bytes; None without one."""
    for file in files:
        try:
            return int(file.read_text(encoding="ascii"))
        except (OSError, ValueError):  # there is no such file, or no limit ("max")
            continue
    return None
