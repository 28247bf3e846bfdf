"""The peer, `heretic-llm` 1.4.0, on the same models, from wheels that were brought along."""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks.gpu_parts.needs import import_path
from benchmarks.gpu_parts.planted import planted
from benchmarks.gpu_parts.sizes import Job
from benchmarks.peer.other import Program, run_peer
from benchmarks.peer.records import PEER, PROMPTS, Case

FOLDER = "peer"
"""Within the folder of wheels, since both packages are called `heretic`."""

START = "from heretic.main import main; main()"
SECOND_MODEL = 90.0
"""Seconds that must be left for the peer to begin the second model."""


def measure(job: Job) -> None:
    """Seconds a trial of the peer: on the planted model, then on the largest that is measured."""
    wheels = job.wheels / FOLDER if job.wheels is not None else None
    if wheels is None or not wheels.is_dir():
        job.note(f"{PEER} was not measured: there is no folder `{FOLDER}` in the one of --wheels.")
        return
    path = os.pathsep.join(map(str, import_path(wheels, job.work / FOLDER)))
    program = Program((sys.executable, "-c", START), {"PYTHONPATH": path})
    folder, name = planted(job)
    _trials(job, program, folder, name)
    shape = job.size.shapes["4b"]
    if job.left() < SECOND_MODEL:
        job.note(f"{PEER} was not measured on {shape}: too little time was left.")
        return
    _trials(job, program, _saved(job.work / shape, shape), f"{shape}, random weights")


def _saved(folder: Path, shape: str) -> Path:
    """A model with random weights, as a folder that the peer can load."""
    import torch
    from benchmarks.engine_parts.setup import SHAPES, random_model, write_folder

    from heretic.system.machine import free_memory

    write_folder(folder, SHAPES[shape])
    random_model(folder, torch.bfloat16).save_pretrained(folder)
    free_memory()  # for the peer
    return folder


def _trials(job: Job, program: Program, folder: Path, name: str) -> None:
    new_tokens = min(job.size.cells["135m"].lengths)
    case = Case(str(folder), "bfloat16", new_tokens, job.size.peer_trials, 1, "own")
    start = time.perf_counter()
    found = run_peer(case, PROMPTS, program)
    job.emit(
        "peer",
        {
            "model": name,
            "new_tokens": new_tokens,
            "prompts": PROMPTS,
            "batch_size": found.batch_size,
            "seconds_a_trial": found.seconds,
            "median": statistics.median(found.seconds),
            "whole_seconds": time.perf_counter() - start,
        },
    )
