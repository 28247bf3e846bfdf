"""The command of `benchmarks/scale.py`."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

from benchmarks.scale_parts.crew import SimulatedCrew
from benchmarks.scale_parts.kills import kill_rows
from benchmarks.scale_parts.local import local_rows
from benchmarks.scale_parts.surrogate import Surrogate, space

from heretic.cluster.pool import WorkerPool
from heretic.events import Silent
from heretic.records.trial import Trial, front
from heretic.records.volume import hypervolume
from heretic.runs.folder import RunFolder
from heretic.search import Study, agenda

REFERENCE = (1.0, 0.1)
"""Refusals and divergence beyond which nothing counts; the latter is twice a usual front's."""


def study_in(folder: str, seed: int) -> Study:
    """The study of one simulated search."""
    return Study(RunFolder(Path(folder)), space(), objectives=("minimize",) * 2, seed=seed)


def driver_row(workers: int, trials: int, seconds: float) -> dict[str, Any]:
    """One asynchronous search, and what it cost the driver."""
    surrogate = Surrogate()
    with tempfile.TemporaryDirectory() as folder:
        crew = SimulatedCrew(seconds, 0, surrogate)
        study = study_in(folder, 0)
        pool = WorkerPool(crew, workers, Silent())
        begin, scoring = process_time(), crew.scoring
        study.run(pool, trials)
        spent = process_time() - begin - (crew.scoring - scoring)
        end = crew.now()
    return {
        "workers": workers,
        "trials": trials,
        "driver, ms a trial": 1000 * spent / trials,
        "busy while plans are left": crew.busy() / workers,
        "after the last plan, s": end - crew.begun,
        "idle before a plan, s (median)": statistics.median(crew.idle),
        "idle before a plan, s (99%)": statistics.quantiles(crew.idle, n=100)[98],
        "workers lost": crew.losses,
    }


def volumes(trials: Sequence[Trial], counts: Sequence[int]) -> list[float]:
    """Hypervolume of the first trials that ended, by their count."""
    return [
        hypervolume([trial.objectives() for trial in front(trials[:count])], REFERENCE)
        for count in counts
    ]


class Ended(Silent):
    """Keeps trials in the order in which they ended."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []

    def emit(self, event: Any) -> None:
        """Take a finished trial."""
        if (trial := getattr(event, "trial", None)) is not None:
            self.trials.append(trial)


def searched(workers: int, trials: int, seed: int, surrogate: Surrogate) -> list[Trial]:
    """The trials of one search, in the order in which they ended."""
    reporter = Ended()
    with tempfile.TemporaryDirectory() as folder:
        study = study_in(folder, seed)
        if workers == 1:
            study.run(lambda plans: [surrogate(plan) for plan in plans], trials, reporter)
        else:
            study.run(
                WorkerPool(SimulatedCrew(10.0, seed, surrogate), workers, Silent()),
                trials,
                reporter,
            )
    return reporter.trials


def one_by_one(run: Callable[[], list[Trial]]) -> list[Trial]:
    """Run a search that proposes each plan alone."""
    before = agenda.PLACES_PER_PROPOSAL
    agenda.PLACES_PER_PROPOSAL = sys.maxsize
    try:
        return run()
    finally:
        agenda.PLACES_PER_PROPOSAL = before


def quality_rows(workers: Sequence[int], counts: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """Hypervolumes of searches at equal numbers of trials."""
    surrogate = Surrogate()
    found: dict[tuple[int, str], list[list[float]]] = {}
    for seed in range(seeds):
        for many in workers:
            run = partial(searched, many, max(counts), seed, surrogate)
            ways = {"together": run()}
            if agenda.proposed_together(many) > 1:
                ways["one by one"] = one_by_one(run)
            for way, trials in ways.items():
                found.setdefault((many, way), []).append(volumes(trials, counts))
                print(seed, many, way, found[many, way][-1], flush=True)
    rows = []
    for (many, way), each in found.items():
        alone = found[workers[0], "together"]
        for i, count in enumerate(counts):
            shares = [one[i] / base[i] for one, base in zip(each, alone, strict=True)]
            rows.append(
                {
                    "workers": many,
                    "proposed": way,
                    "trials": count,
                    "hypervolume (mean)": statistics.mean(one[i] for one in each),
                    "against the first (mean)": statistics.mean(shares),
                    "standard error": statistics.stdev(shares) / len(shares) ** 0.5
                    if len(shares) > 1
                    else 0.0,
                }
            )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table in Markdown."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + " ---: |" * len(rows[0]))
    for row in rows:
        cells = [f"{one:.4g}" if isinstance(one, float) else str(one) for one in row.values()]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Run one of the four."""
    parser = argparse.ArgumentParser(description="What many workers do to a search.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    driver, quality, kills, local = map(kinds.add_parser, ("driver", "quality", "kills", "local"))
    driver.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    driver.add_argument("--trials", type=int, default=10_000)
    driver.add_argument("--seconds", type=float, default=10.0)
    quality.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    quality.add_argument("--trials", type=int, nargs="+", default=[200, 400])
    quality.add_argument("--seeds", type=int, default=10)
    kills.add_argument("--workers", type=int, default=20, help="kills of workers")
    kills.add_argument("--drivers", type=int, default=5, help="kills of the driver")
    kills.add_argument("--trials", type=int, default=300)
    local.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    local.add_argument("--trials", type=int, default=12)
    for one in (driver, quality, kills, local):
        one.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.kind == "driver":
        rows = [driver_row(one, args.trials, args.seconds) for one in args.workers]
    elif args.kind == "quality":
        rows = quality_rows(args.workers, args.trials, args.seeds)
    elif args.kind == "kills":
        rows = kill_rows(args.workers, args.drivers, args.trials, seed=0)
    else:
        rows = local_rows(args.workers, args.trials)
    show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
