"""The ready configurations of behaviours on the demo's small model: the table of docs/behaviors.md.

    python benchmarks/behaviors.py [--data FOLDER] [--trials 12] [--tokens 60] [--prompts 60]
        [--only slop humour ...]

Each is searched once, with seed 1; searches that were stopped go on. Shown is the trial with the
best first score among those with a divergence of at most LIMIT nats, a rule made before any search.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from heretic.demo.base import base_model
from heretic.records import Score, Trial
from heretic.runs.folder import RunFolder
from heretic.runs.listing import list_runs

BEHAVIORS = ("humour", "sycophancy", "slop", "verbosity")
LIMIT = 0.5
"""Beyond, a model's first words are other ones altogether."""


def search(name: str, model: Path, options: argparse.Namespace) -> Path:
    """Search, or go on; the folder of the run's checkpoints."""
    folder: Path = options.data / name
    command = [sys.executable, "-m", "heretic", str(model), "--behavior", name]
    command += ["--n-trials", str(options.trials), "--n-startup-trials", str(options.trials)]
    command += ["--search", "tpe", "--seed", "1", "--response-prefix", "", "--batch-size", "20"]
    command += ["--max-response-length", str(options.tokens)]
    for kind in ("good", "bad"):
        command += [f"--{kind}-evaluation-prompts.split", f"train[:{options.prompts}]"]
    command += ["--checkpoint-action", "continue", "--model-action", "none"]
    command += ["--study-checkpoint-dir", str(folder)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    return folder


def chosen(trials: list[Trial]) -> Trial | None:
    """The best by the first objective of those with little divergence."""
    near = [
        trial
        for trial in trials
        if not trial.failure and trial.scores[-1].value <= LIMIT and not trial.scores[0].bound
    ]
    return min(near, key=Trial.objectives, default=None)


def rows(name: str, folder: Path) -> list[str]:
    """Of the table: one for each score but the divergence, which is in the last column."""
    newest = list_runs(folder)[0]
    run = RunFolder(newest.path)
    manifest = run.read_manifest()
    trial = chosen(run.read_trials())
    if manifest is None or trial is None:
        return [f"| `{name}` | no trial below {LIMIT} nats | | |\n"]
    before = [Score.from_dict(row) for row in manifest.found["baseline"]]
    return [
        f"| `{name}`: {old.name} | {old.with_interval()} | {new.with_interval()} "
        f"| {trial.scores[-1].with_interval()} |\n"
        for old, new in zip(before[:-1], trial.scores[:-1], strict=True)
    ]


def main() -> None:
    """Search by each and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("behaviors-data"))
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--only", nargs="+", choices=BEHAVIORS, default=BEHAVIORS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = base_model(lambda text: print(text, file=sys.stderr))
    print("| score | original | edited | KL divergence |\n| --- | --- | --- | --- |")
    for name in options.only:
        print("".join(rows(name, search(name, model, options))), end="", flush=True)


if __name__ == "__main__":
    main()
