"""The device: its name, its bandwidth, its rate of matrix products, the cost of a launch."""

from __future__ import annotations

import shutil
import subprocess
import time
from importlib import metadata

import torch
from benchmarks.engine_parts.rates import bandwidth, median_seconds, synchronize
from benchmarks.gpu_parts.sizes import Job

from heretic.system.machine import accelerator, hardware

ONLY_ON_A_GPU = (
    "A CPU has no launches, graphs or device memory of its own: these figures are left out."
)


def measure(job: Job) -> None:
    """All of it, row by row."""
    device = accelerator()

    def row(what: str, figure: float | str, unit: str = "") -> None:
        job.emit("device", {"what": what, "figure": figure, "unit": unit})

    facts = hardware(device)
    row("device", ", ".join(facts.get("accelerators", [])) or facts["processor"])
    row("processor", f"{facts['processor']}, {facts['cores']} cores")
    for name, version in versions(device).items():
        row(name, version)
    row("bandwidth of a large copy, read and written", bandwidth(device) / 1e9, "GB/s")
    size = job.size.matrix
    row(f"product of bfloat16 matrices of {size}", matrix_rate(device, size) / 1e12, "TFLOP/s")
    spent, whole = launch_seconds(device, job.size.copies)
    row("an operation on one number: host", 1e6 * spent, "us")
    row("the same, until the device has done it", 1e6 * whole, "us")
    if device.type != "cuda":
        job.note(ONLY_ON_A_GPU)
        return
    row("replay of a graph with one kernel", 1e6 * replay_seconds(1, job.size.copies), "us")
    many = replay_seconds(job.size.copies, 10) / job.size.copies
    row(f"a kernel in a graph of {job.size.copies}", 1e6 * many, "us")


def versions(device: torch.device) -> dict[str, str]:
    """Driver, CUDA, and the packages that figures depend on."""
    found = {}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if device.type == "cuda" and shutil.which(query[0]):
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
        found["driver"] = (done.stdout.splitlines() or ["not told"])[0].strip()
    if device.type == "cuda":
        found["CUDA of torch"] = str(torch.version.cuda or torch.version.hip)
    for name in ("torch", "triton", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not here"
    return found


def matrix_rate(device: torch.device, size: int) -> float:
    """Floating-point operations per second of a product of random square matrices in bfloat16."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = median_seconds(lambda: one @ other, lambda: synchronize(device))
    return float(2 * size**3 / seconds)


def launch_seconds(device: torch.device, copies: int) -> tuple[float, float]:
    """Seconds per operation on one number: until the host is free, and until all are done."""
    number = torch.zeros(1, device=device)

    def launch() -> None:
        for _ in range(copies):
            number.add_(1)

    whole = median_seconds(launch, lambda: synchronize(device))
    synchronize(device)
    start = time.perf_counter()
    launch()
    spent = time.perf_counter() - start
    return spent / copies, whole / copies


def replay_seconds(kernels: int, copies: int) -> float:
    """Seconds for each replay of a CUDA graph of so many kernels that do next to nothing."""
    number = torch.zeros(1, device="cuda")
    graph = torch.cuda.CUDAGraph()
    number.add_(1)  # its kernel is loaded now, not while the graph is captured
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(kernels):
            number.add_(1)

    def replay() -> None:
        for _ in range(copies):
            graph.replay()

    return median_seconds(replay, torch.cuda.synchronize) / copies
