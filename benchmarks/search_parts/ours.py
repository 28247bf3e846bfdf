"""Heretic's own searches, by its command."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peer.processes import failure, run_process, say
from benchmarks.search_parts.peer import STARTUP_SHARE
from benchmarks.search_parts.quality import qualities
from benchmarks.search_parts.records import LIMITS, Run, Seen

import heretic
from heretic.records import Trial
from heretic.runs.folder import RunFolder

LONG = 200
"""New tokens of the long replies."""

SCORERS: Sequence[Mapping[str, str]] = (
    {"plugin": "refusal", "name": "refusals"},
    {"plugin": "kl_divergence"},
    {"plugin": "keyword", "name": "keywords", "optimization": "none"},
)
"""The default ones, and what the peer counts by."""


def run_ours(
    model: str,
    folder: Path,
    sets: Mapping[str, str],
    held_out: tuple[Path, Path],
    *,
    search: str,
    seed: int,
    trials: int,
    new_tokens: int,
    work: Path,
) -> Run:
    """One search, timed from the start of the command, and the quality of its front.

    Args:
        sets: Options of the prompt sets, with their values.
        held_out: Files of held-out bad and good prompts.
        work: The run's folder is made here, anew.
    """
    say(f"{search} on the model {model}, seed {seed}, {trials} trials")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    values = {
        **sets,
        "search": search,
        "seed": seed,
        "n-trials": trials,
        "n-startup-trials": round(STARTUP_SHARE * trials),
        "max-response-length": new_tokens,
        "response-prefix": "",
        "scorers": json.dumps(SCORERS),
        "study-checkpoint-dir": work / "runs",
        "model-action": "none",
    }
    command = [sys.executable, "-m", "heretic", str(folder)]
    command += [f"--{name}={value}" for name, value in values.items()]
    start = datetime.now(UTC)
    source = {"PYTHONPATH": str(Path(heretic.__file__).parents[1])}
    status, _, _ = run_process(command, work, source)
    if status != 0:
        raise failure("The search", work / "log")
    [made] = (work / "runs").iterdir()
    found = tuple(seen_trials(made, start))
    bad, good = held_out
    quality = tuple(one for one, _ in qualities(made, bad, good, tokens=LONG, limits=LIMITS))
    return Run(model, search, seed, found, quality)


def seen_trials(folder: Path, start: datetime) -> list[Seen]:
    """The complete trials of a run folder, in the order of their ends."""
    ends = dict(_ends(folder / "trials.journal"))
    trials = [one for one in RunFolder(folder).read_trials() if one.state == "complete"]
    return [_seen(one, (ends[one.number] - start).total_seconds()) for one in trials]


def _ends(journal: Path) -> list[tuple[int, datetime]]:
    """When each trial ended."""
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()
    ]
    return [
        (row["trial_id"], datetime.fromisoformat(row["datetime_complete"]))
        for row in rows
        if row.get("datetime_complete") and "trial_id" in row
    ]


def _seen(trial: Trial, at: float) -> Seen:
    """What was not counted because the trial ended early is 0, the bound of a share."""
    values = {score.name: score.value for score in trial.scores}
    return Seen(
        at,
        refusals=values.get("refusals", 0.0),
        keywords=values.get("keywords", 0.0),
        kl_divergence=values.get("kl_divergence", 0.0),
        bound=trial.pruned,
    )
