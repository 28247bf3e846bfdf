"""Peak memory of an evaluation, beyond the weights, in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from benchmarks.engine_parts.ablation import FULL, Evaluators
from benchmarks.engine_parts.setup import Bench, encoded_lengths

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Memory:
    """What an evaluation took.

    Attributes:
        columns: Tokens of the longest prompt and its reply.
        implied: Bytes of the key/value cache that the settings imply, slots times columns.
        peak: Bytes at most, less those in use once the model and the directions were there.
    """

    new_tokens: int
    plans: int
    rows: int
    slots: int
    columns: int
    implied: int
    peak: int

    @property
    def ratio(self) -> float:
        """Peak against what the settings imply."""
        return self.peak / self.implied


def measure_here(bench: Bench, new_tokens: int) -> Memory:
    """Evaluate enough plans to fill all slots, having started low."""
    model, sets = bench.model, bench.prompts.evaluation
    slots = model.batch_size
    plans = 1 + slots // len(sets.bad)
    columns = max(encoded_lengths(model, [*sets.good, *sets.bad])) + new_tokens
    before = _start(model.device)
    Evaluators(bench, new_tokens).get(FULL).evaluate(bench.plans("low", plans))
    return Memory(
        new_tokens=new_tokens,
        plans=plans,
        rows=plans * len(sets.bad),
        slots=slots,
        columns=columns,
        implied=slots * columns * model.cache_bytes_per_token(),
        peak=_peak(model.device) - before,
    )


def _start(device: torch.device) -> int:
    """Bytes in use, having given back what is not; the high-water mark begins here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    if platform.system() == "Linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)
        CLEAR.write_text("5", encoding="ascii")
        return _status("VmRSS")
    return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if platform.system() == "Linux":
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _status(name: str) -> int:
    """A figure of /proc/self/status, which gives kB, in bytes."""
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {name} in {STATUS}")


def measure(script: Path, arguments: Sequence[str]) -> Memory:
    """`measure_here` in a new process of the script, started with these arguments."""
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def as_json(memory: Memory) -> str:
    """One line, for the process that asked."""
    return json.dumps(asdict(memory))
