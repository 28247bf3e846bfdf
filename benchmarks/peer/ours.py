"""Heretic: scores given plans in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peer.processes import failure, run_process
from benchmarks.peer.records import KEYWORD_SCORERS, PROMPTS, SETS, Case, Measured

SCRIPT = Path(__file__).resolve().parents[1] / "versus_peer.py"
"""Started once more with `ours` to score plans."""


def run_ours(way: str, case: Case, plans: Sequence[Mapping[str, Any]], batch_size: int) -> Measured:
    """Score plans with Heretic, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="versus-peer-") as name:
        folder = Path(name)
        job = {"way": way, "case": asdict(case), "plans": list(plans), "batch_size": batch_size}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, str(SCRIPT), "ours", "job.json", "done.json"]
        search_path = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        status, peak, seconds = run_process(command, folder, search_path)
        if status != 0:
            raise failure("Heretic", folder / "log")
        done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    return Measured(**done, peak_bytes=peak, process_seconds=seconds)


def ours(job_file: Path, result_file: Path) -> None:
    """The process that `run_ours` starts: load everything, then time nothing but the plans."""
    import torch

    from heretic import pipeline
    from heretic.evaluator import Evaluator
    from heretic.events import Silent
    from heretic.records import Plan
    from heretic.system.machine import accelerator, device_name

    job = json.loads(job_file.read_text(encoding="utf-8"))
    case = Case(**job["case"])
    settings = our_settings(case, job["batch_size"])
    prompts = pipeline.load_prompts(settings, Silent())
    model, directions = pipeline.model_and_directions(settings, prompts, Silent())
    if case.last_direction == "peer":
        directions = with_normed_last(directions, model, prompts, settings)
    evaluator = Evaluator(settings, model, directions, Silent(), prompts.evaluation)
    baseline = {score.name: score.value for score in evaluator.baseline}
    plans = [Plan.from_dict(row) for row in job["plans"]]
    seconds, scores = timed(evaluator, plans, together=job["way"] == "together")
    done = {
        "way": job["way"],
        "seconds": seconds,
        "refusals": [round(row["refusals"] * PROMPTS) for row in scores],
        "kl_divergence": [row["kl_divergence"] for row in scores],
        "baseline_refusals": round(baseline["refusals"] * PROMPTS),
        "plans": job["plans"],
        "batch_size": model.batch_size,
        "device": f"{device_name(accelerator())}, {torch.get_num_threads()} threads",
    }
    result_file.write_text(json.dumps(done), encoding="utf-8")


def with_normed_last(directions: Any, model: Any, prompts: Any, settings: Any) -> Any:
    """Directions with the last layer's taken after the model's final norm, as the peer does."""
    import torch

    from heretic.method.directions import difference_directions

    centers = []
    with torch.inference_mode():
        for rows in (prompts.good, prompts.bad):
            last = model.get_residuals_batched(rows)[:, -1].to(model.device, model.dtype)
            center = model.model.model.norm(last).to("cpu", torch.float64).mean(dim=0)
            centers.append(torch.stack([center, center]))  # the first row stands for embeddings
    pair = difference_directions(*centers, orthogonalize=settings.orthogonalize_direction)
    return torch.cat([directions[:-1], pair[1:]])


def our_settings(case: Case, batch_size: int) -> Any:
    """Heretic's settings for what `peer_command` gives to the peer."""
    from heretic.config import Settings
    from heretic.demo.data import prompt_file

    sets = {
        setting: {"dataset": str(prompt_file(name)), "split": f"train[:{PROMPTS}]"}
        for setting, name in SETS.items()
    }
    return Settings.restore(
        {
            **sets,
            "model": case.model,
            "dtypes": [case.dtype],
            "batch_size": batch_size,
            "max_response_length": case.new_tokens,
            "response_prefix": "",
            "scorers": KEYWORD_SCORERS,
            "row_normalization": "none",
            "seed": case.seed,
        }
    )


def timed(
    evaluator: Any, plans: Sequence[Any], *, together: bool
) -> tuple[list[float], list[dict[str, float]]]:
    """Seconds per plan, and each plan's scores by name. The baseline has been measured before."""
    calls = [list(plans)] if together else [[plan] for plan in plans]
    seconds: list[float] = []
    scores: list[dict[str, float]] = []
    for call in calls:
        start = time.perf_counter()
        rows = evaluator.evaluate(call)
        seconds.append((time.perf_counter() - start) / len(call))
        scores += [{score.name: score.value for score in row} for row in rows]
    return seconds, scores
