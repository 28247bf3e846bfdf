"""Measures what racing saves over a whole search, and what it costs the front.

    python benchmarks/racing.py [--trials N] [--seeds S ...] [--new-tokens N] [--json FILE]

Runs the demo's search on the planted model with racing and without, in turn, seed by seed: the
sampler sees the outcomes, so the two searches part once a trial has been ended early. Prints
seconds, trials ended early, and the hypervolume of (refusal rate, KL divergence) against (1, 1) at
equal numbers of trials and at equal times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from heretic import pipeline
from heretic.demo.job import demo_settings
from heretic.events import Event, SearchStarted, Silent, TrialFinished
from heretic.records.volume import hypervolume

STARTUP_SHARE = 0.3
HEADER = [
    "seed",
    "racing",
    "trials",
    "ended early",
    "seconds",
    "hypervolume at the end",
    "when racing had ended",
]


@dataclass(frozen=True, slots=True)
class Run:
    """One search: the hypervolume after each trial, and when it ended."""

    seed: int
    racing: bool
    ended_early: int
    seconds: list[float]
    volumes: list[float]

    def volume_at(self, seconds: float) -> float:
        """Hypervolume of what was known then."""
        known = [
            volume for volume, at in zip(self.volumes, self.seconds, strict=True) if at <= seconds
        ]
        return known[-1] if known else 0.0


class Watch:
    """A reporter that notes the front and the time after every trial."""

    def __init__(self) -> None:
        self.start = 0.0
        self.seconds: list[float] = []
        self.volumes: list[float] = []

    def emit(self, event: Event) -> None:
        """Take note of the search's start, and of every trial's end."""
        if isinstance(event, SearchStarted):
            self.start = time.perf_counter()
        if isinstance(event, TrialFinished):
            self.seconds.append(time.perf_counter() - self.start)
            front = [trial.objectives() for trial in event.front]
            self.volumes.append(hypervolume(front, (1.0, 1.0)))


def search(seed: int, racing: bool, trials: int, new_tokens: int) -> Run:
    """One search in a folder of its own; loading and the baseline are not timed."""
    with tempfile.TemporaryDirectory() as folder:
        settings = demo_settings(
            Silent(),
            {
                "seed": seed,
                "racing": racing,
                "n_trials": trials,
                "n_startup_trials": round(STARTUP_SHARE * trials),
                "max_response_length": new_tokens,
                "batch_size": 0,
                "study_checkpoint_dir": folder,
                "save_directory": f"{folder}/model",
            },
        )
        prompts = pipeline.load_prompts(settings, Silent())
        run, drawn = pipeline.open_folder(settings, prompts)
        with run.lock():
            watch = Watch()
            session = pipeline.prepare(settings, prompts, run, drawn, watch)
            pipeline.search(session)
            early = sum(trial.pruned for trial in session.study.trials)
    return Run(seed, racing, early, watch.seconds, watch.volumes)


def table(runs: Sequence[Run]) -> str:
    """The runs in Markdown, pairs of a seed side by side."""
    rows, ratios = [HEADER], []
    for seed in dict.fromkeys(run.seed for run in runs):
        with_, without = (
            next(run for run in runs if run.seed == seed and run.racing is racing)
            for racing in (True, False)
        )
        ratios.append(without.seconds[-1] / with_.seconds[-1])
        rows += [_row(run, with_.seconds[-1]) for run in (without, with_)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(HEADER), *rows[1:])]
    return "\n".join([*lines, "", f"Median: {statistics.median(ratios):.2f} times as fast."])


def _row(run: Run, shorter: float) -> list[str]:
    return [
        str(run.seed),
        "on" if run.racing else "off",
        str(len(run.seconds)),
        str(run.ended_early),
        f"{run.seconds[-1]:.0f}",
        f"{run.volumes[-1]:.4f}",
        f"{run.volume_at(shorter):.4f}",
    ]


def main() -> None:
    """Run the searches in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runs = []
    for number, seed in enumerate(arguments.seeds):
        for racing in ((True, False), (False, True))[number % 2]:
            run = search(seed, racing, arguments.trials, arguments.new_tokens)
            runs.append(run)
            if arguments.json is not None:
                arguments.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))
    print(table(runs))


if __name__ == "__main__":
    main()
