"""The memory that a search may count on: not all that a machine has."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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


def room_of(device: torch.device, total: int) -> Room:
    """The room on a device.

    Args:
        total: Its bytes, as `total_memory` tells them.
    """
    import torch

    count = 0 if device.type == "cpu" else torch.accelerator.device_count()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        import psutil

        free = psutil.virtual_memory().available
    usable = int((1 - RESERVE) * total)
    return Room(usable, min(free, usable), count)
