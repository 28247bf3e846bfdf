"""Heretic's own searches, by its command."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    *,
    search: str,
    seed: int,
    trials: int,
    new_tokens: int,
    work: Path,
) -> Run:
    """One search, timed from the start of the command.

    Args:
        sets: Options of the prompt sets, with their values.
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
    return Run(model, search, seed, tuple(seen_trials(_folder(work), start)))


def with_quality(run: Run, work: Path, bad: Path, good: Path) -> Run:
    """A run of ours with the quality of its front.

    Args:
        work: Of `run_ours`.
        bad, good: Files of held-out prompts.
    """
    say(f"{run.tool} on the model {run.model}, seed {run.seed}: held-out prompts, at length")
    found = qualities(_folder(work), bad, good, tokens=LONG, limits=LIMITS)
    return replace(run, quality=tuple(one for one, _ in found))


def _folder(work: Path) -> Path:
    [made] = (work / "runs").iterdir()
    return made


def seen_trials(
    folder: Path, start: datetime, names: Sequence[str] = ("refusals", "keywords", "kl_divergence")
) -> list[Seen]:
    """The complete trials of a run folder, in the order of their ends.

    Args:
        names: Of the scores that count refusals, keywords, and the divergence.
    """
    ends = dict(_ends(folder / "trials.journal"))
    trials = [one for one in RunFolder(folder).read_trials() if one.state == "complete"]
    return [_seen(one, (ends[one.number] - start).total_seconds(), names) for one in trials]


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


def _seen(trial: Trial, at: float, names: Sequence[str]) -> Seen:
    """What was not counted because the trial ended early is 0, the bound of a share."""
    values = {score.name: score.value for score in trial.scores}
    if trial.pruned:
        values = {**dict.fromkeys(names, 0.0), **values}
    refusals, keywords, divergence = (values[name] for name in names)
    return Seen(at, refusals, keywords, divergence, trial.pruned)
