"""Kernels and launches among the events of torch's profiler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cuGraphLaunch", "hipLaunch")
"""Beginnings of the names of the host's calls that start something on the device."""

GRAPHS = ("cudaGraphLaunch", "cuGraphLaunch", "hipGraphLaunch")
COPIES = ("Memcpy", "Memset")


@dataclass(frozen=True, slots=True)
class Tally:
    """What happened, or happens in a step.

    Attributes:
        launches: Calls of the host that start one kernel, or one graph.
        graphs: Those of them that start a graph.
        kernels: That ran on the device, those in graphs too; copies are not counted.
        busy_seconds: Sum of the kernels' and copies' times: what the device needs at least if they
            follow each other without a gap, as in a graph.
    """

    launches: float
    graphs: float
    kernels: float
    busy_seconds: float

    def __sub__(self, other: Tally) -> Tally:
        return Tally(
            self.launches - other.launches,
            self.graphs - other.graphs,
            self.kernels - other.kernels,
            self.busy_seconds - other.busy_seconds,
        )

    def __truediv__(self, steps: float) -> Tally:
        return Tally(
            self.launches / steps,
            self.graphs / steps,
            self.kernels / steps,
            self.busy_seconds / steps,
        )


def activities() -> list[Any]:
    """What the profiler records: the device's work and the calls that start it, if there is a GPU.

    Operations on the host are left out: there are many, and recording them slows everything down.
    """
    kinds = torch.profiler.ProfilerActivity
    return [kinds.CUDA] if torch.cuda.is_available() else [kinds.CPU]


def tally(events: Iterable[Any]) -> Tally:
    """Counts of the profiler's events (`torch.profiler.profile.events`)."""
    launches = graphs = kernels = 0
    busy = 0.0
    for event in events:
        if getattr(event, "is_user_annotation", False):
            continue  # a name for a stretch of time, not work of its own
        if event.device_type.name != "CPU":
            busy += event.time_range.elapsed_us() / 1e6
            kernels += not event.name.startswith(COPIES)
        elif event.name.startswith(LAUNCHES):
            launches += 1
            graphs += event.name.startswith(GRAPHS)
    return Tally(launches, graphs, kernels, busy)
