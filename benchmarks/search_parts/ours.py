"""Heretic's own searches, by its command."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.peer.processes import failure, run_process, say
from benchmarks.search_parts.peer import STARTUP_SHARE
from benchmarks.search_parts.quality import Quality, qualities
from benchmarks.search_parts.records import LIMITS, Run, Seen

import heretic
from heretic.records import Trial
from heretic.runs.events import EVENTS, STARTED, read_events, trial_times, work_times
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
    """One search; one that was stopped goes on where it was.

    Args:
        sets: Options of the prompt sets, with their values.
        work: The run's folder is made here, or found. The trials are timed by what its commands
            worked, from their starts.
    """
    say(f"{search} on the model {model}, seed {seed}, {trials} trials")
    work.mkdir(parents=True, exist_ok=True)
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
    source = {"PYTHONPATH": str(Path(heretic.__file__).parents[1])}
    status, _, _ = run_process(command, work, source)
    if status != 0:
        raise failure("The search", work / "log")
    made = _folder(work)
    commands = sum(row["event"] == STARTED for row in read_events(made / EVENTS))
    note = "" if commands == 1 else f"in {commands} commands"
    return Run(model, search, seed, tuple(seen_trials(made)), note=note)


def with_quality(run: Run, work: Path, bad: Path, good: Path) -> Run:
    """A run of ours with the quality of its front.

    The replies are kept as they come in `replies.json` in `work`, so that people can read them: by
    limit ("original" without one) and prompt.

    Args:
        work: Of `run_ours`.
        bad, good: Files of held-out prompts.
    """
    say(f"{run.tool} on the model {run.model}, seed {run.seed}: held-out prompts, at length")
    figures: list[Quality] = []
    read: dict[str, Mapping[str, str]] = {}
    found = qualities(_folder(work), bad, good, tokens=LONG, limits=LIMITS)
    for quality, replies in found:
        figures.append(quality)
        read["original" if quality.limit is None else f"<= {quality.limit}"] = replies
        text = json.dumps(read, indent=1, ensure_ascii=False)
        (work / "replies.json").write_text(text, encoding="utf-8")
    return replace(run, quality=tuple(figures))


def _folder(work: Path) -> Path:
    """The one run in a folder; other settings than those it was begun with make another.

    Raises:
        SystemExit: There are several.
    """
    found = list((work / "runs").iterdir())
    if len(found) != 1:
        raise SystemExit(
            f"{work / 'runs'} holds {len(found)} runs; keep one, or delete the folder."
        )
    return found[0]


def seen_trials(
    folder: Path, names: Sequence[str] = ("refusals", "keywords", "kl_divergence")
) -> list[Seen]:
    """The complete trials of a run folder, in the order of their ends.

    A trial that was kept when its command was killed may have no end among the events. It is timed
    by the next trial that has one, or else by the last event.

    Args:
        names: Of the scores that count refusals, keywords, and the divergence.
    """
    events = read_events(folder / EVENTS)
    times, at = trial_times(events), work_times(events)[-1]
    trials = [one for one in RunFolder(folder).read_trials() if one.state == "complete"]
    seen = []
    for one in reversed(trials):
        at = times.get(one.number, at)
        seen.append(_seen(one, at, names))
    return seen[::-1]


def _seen(trial: Trial, at: float, names: Sequence[str]) -> Seen:
    """What was not counted because the trial ended early is 0, the bound of a share."""
    values = {score.name: score.value for score in trial.scores}
    if trial.pruned:
        values = {**dict.fromkeys(names, 0.0), **values}
    refusals, keywords, divergence = (values[name] for name in names)
    return Seen(at, refusals, keywords, divergence, trial.pruned)
