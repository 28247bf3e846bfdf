"""Figures of one model: seconds a trial, decoding, steps and launches, memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from benchmarks.engine_parts import decode
from benchmarks.engine_parts.ablation import FULL, Evaluators, timed
from benchmarks.engine_parts.rates import bandwidth, synchronize
from benchmarks.engine_parts.setup import (
    Bench,
    Kind,
    encoded_lengths,
    open_bench,
    without_end_tokens,
)
from benchmarks.gpu_parts.launches import Tally, activities, tally
from benchmarks.gpu_parts.planted import planted
from benchmarks.gpu_parts.sizes import Cells, Job

from heretic.engine.opening import open_engine
from heretic.system.machine import free_memory

SLOW = 5.0
"""Seconds of a call after which it is not made again."""


def random_shape(job: Job) -> None:
    """A model with random weights, of the section's shape."""
    _measure(job, job.shape, None, f"{job.shape}, random weights")


def planted_shape(job: Job) -> None:
    """The demo's planted model, or what stands in for it."""
    folder, name = planted(job)
    _measure(job, "planted", folder, name)


def _measure(job: Job, shape: str, folder: Path | None, name: str) -> None:
    cells = job.size.cells[job.section]
    start = time.perf_counter()
    bench = open_bench(
        shape,
        prompts=job.size.prompts,
        dtype="bfloat16",
        new_tokens=max(cells.lengths),
        folder=folder,
    )
    job.emit("models", _opened(bench, name, time.perf_counter() - start))
    for text in bench.warnings:
        job.note(f"{name}: {text}")
    most, longest = max(cells.plans), max(cells.lengths)
    _trials(job, bench, name, cells.lengths[0], cells)
    _decoding(job, bench, name, most, longest)
    for length in cells.lengths[1:]:
        _trials(job, bench, name, length, cells)
    if min(cells.plans) < most:
        _decoding(job, bench, name, min(cells.plans), longest)
    if job.left() <= 0:
        job.note(f"{name}: the section's time ended before all cells were measured.")


def _opened(bench: Bench, name: str, seconds: float) -> dict[str, Any]:
    model = bench.model
    return {
        "model": name,
        "layers": model.n_layers,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "weights_bytes": _weights(bench),
        "dtype": str(model.dtype).removeprefix("torch."),
        "slots": bench.automatic_slots,
        "open_seconds": seconds,
    }


def _weights(bench: Bench) -> int:
    return sum(p.numel() * p.element_size() for p in bench.model.model.parameters())


# --- trials --------------------------------------------------------------------------------


def _trials(job: Job, bench: Bench, name: str, length: int, cells: Cells) -> None:
    """Seconds a trial at one length, one row for each number of plans in a call."""
    if job.left() <= 0:
        return
    _restart_peak(bench)
    start = time.perf_counter()
    evaluator = Evaluators(bench, length).get(FULL)
    made = time.perf_counter() - start
    kind: Kind = "fixed" if bench.fixed_lengths else "low"
    for count in cells.plans:
        if job.left() <= 0:
            return
        plans = bench.plans(kind, count)
        first, scores = timed(bench, evaluator, plans)
        runs: list[float] = []
        while len(runs) < cells.rounds and (not runs or count * runs[0] < SLOW):
            seconds, scores = timed(bench, evaluator, plans)
            runs.append(seconds)
        job.emit(
            "trials",
            {
                "model": name,
                "new_tokens": length,
                "prompts": job.size.prompts,
                "plans": count,
                "seconds_a_trial": runs,
                "first_call": first,
                "baseline_seconds": made,
                "fixed_lengths": bench.fixed_lengths,
                "refusals": [row[0].value for row in scores],
                **_peak(bench, count, length),
            },
        )


def _restart_peak(bench: Bench) -> None:
    free_memory()
    if bench.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.model.device)


def _peak(bench: Bench, count: int, length: int) -> dict[str, Any]:
    """The largest memory so far beyond the weights, and the cache that the cell implies."""
    model, sets = bench.model, bench.prompts.evaluation
    columns = max(encoded_lengths(model, [*sets.good, *sets.bad])) + length
    rows = min(model.rows_together(count), count * len(sets.bad))
    implied = {"rows": rows, "cache_bytes": rows * columns * model.cache_bytes_per_token()}
    if model.device.type != "cuda":
        return implied
    peak = torch.cuda.max_memory_allocated(model.device) - _weights(bench)
    return {**implied, "peak_bytes": peak}


# --- decoding ------------------------------------------------------------------------------


def _decoding(job: Job, bench: Bench, name: str, plans: int, length: int) -> None:
    """Tokens a second with a row for each prompt and plan, and what a step is made of."""
    if job.left() <= 0:
        return
    free_memory()
    before = bench.model.batch_size
    bench.model.batch_size = min(plans * job.size.prompts, bench.model.rows_together(plans))
    try:
        [found] = decode.measure(
            bench, plans=[plans], tokens=length, rounds=1, say=lambda text: None
        )
        row = {"model": name, **asdict(found), "step_seconds": found.rows / found.median}
        row["bandwidth"] = bandwidth(bench.model.device)
        row["matrix_seconds"] = found.rows / found.limits["matrix rate"][0]
        job.emit("decoding", row)
        free_memory()
        step = _step(bench, plans, found.rows // plans, job.size.profiled)
        if step.kernels > 0:  # none on a CPU
            job.emit("steps", {"model": name, "plans": plans, "rows": found.rows, **asdict(step)})
    finally:
        bench.model.batch_size = before


def _step(bench: Bench, plans: int, prompts: int, lengths: Sequence[int]) -> Tally:
    """Launches and device time of one step: the difference of two lengths, per token."""
    short, long = (_profiled(bench, plans, prompts, length) for length in lengths)
    return (long - short) / (lengths[1] - lengths[0])


def _profiled(bench: Bench, plans: int, prompts: int, length: int) -> Tally:
    """What the profiler counts while all replies are made, the engine being warm."""
    model = bench.model
    edits = [model.plan_edits(plan, bench.directions) for plan in bench.plans("low", plans)]
    asked = list(islice(cycle(bench.prompts.evaluation.bad), prompts))
    with torch.inference_mode(), without_end_tokens(model):
        engine = open_engine(model, {"bad": asked}, replied={"bad"}, max_new_tokens=length)
        engine.replies("bad", edits)
        synchronize(model.device)
        with torch.profiler.profile(activities=activities()) as seen:
            engine.replies("bad", edits)
            synchronize(model.device)
    return tally(seen.events() or ())
