"""Heretic's own searches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peer.processes import say
from benchmarks.peer.records import KEYWORD_SCORERS
from benchmarks.search_parts.peer import STARTUP_SHARE
from benchmarks.search_parts.records import Run, Seen

from heretic import pipeline
from heretic.config import Settings
from heretic.events import Event, SearchStarted, Silent, StageFinished, StageStarted, TrialFinished
from heretic.pipeline import Session
from heretic.records import Trial

FEW = 0.03
"""Refusal rate up to which a trial is one that a user would choose."""


class Watch:
    """A reporter that notes when trials end, and how long the sweep took."""

    def __init__(self) -> None:
        self.before = 0.0
        self.seen: list[Seen] = []
        self._start = self._sweep = 0.0
        self._in_sweep = False

    def emit(self, event: Event) -> None:
        """Take note."""
        now = time.perf_counter()
        if isinstance(event, StageStarted):
            self._in_sweep, self._sweep = event.title == "Gradient sweep", now
        elif isinstance(event, StageFinished) and self._in_sweep:
            self._in_sweep, self.before = False, now - self._sweep
        elif isinstance(event, SearchStarted):
            self._start = now
        elif isinstance(event, TrialFinished) and event.trial.state == "complete":
            refusals, divergence = event.trial.objectives()
            at = self.before + now - self._start
            self.seen.append(Seen(at, refusals, divergence, event.trial.pruned))


def run_ours(
    model: str,
    folder: Path,
    sets: Mapping[str, Path],
    *,
    search: str,
    seed: int,
    trials: int,
    new_tokens: int,
    options: Mapping[str, Any],
) -> Run:
    """One search; loading, directions and the baseline are not timed, as they are not the peer's.

    Args:
        sets: Setting to file, as for the peer, and the held-out ones.
        options: Further settings.
    """
    say(f"{search} on the model {model}, seed {seed}, {trials} trials")
    with tempfile.TemporaryDirectory() as work:
        values = {
            "model": str(folder),
            **{name: {"dataset": str(path), "split": "[:100]"} for name, path in sets.items()},
            "search": search,
            "seed": seed,
            "n_trials": trials,
            "n_startup_trials": round(STARTUP_SHARE * trials),
            "max_response_length": new_tokens,
            "response_prefix": "",
            "scorers": KEYWORD_SCORERS,
            "study_checkpoint_dir": work,
            **options,
        }
        watch = Watch()
        settings = Settings.restore(values)
        prompts = pipeline.load_prompts(settings, Silent())
        run, drawn = pipeline.open_folder(settings, prompts)
        with run.lock():
            session = pipeline.prepare(settings, prompts, run, drawn, watch)
            pipeline.search(session)
            held_out = _held_out(session)
    return Run(model, search, seed, tuple(watch.seen), watch.before, held_out)


def _held_out(session: Session) -> dict[str, Any] | None:
    """Both figures of the trial that a user would choose."""

    def kl(trial: Trial) -> float:
        return trial.objectives()[1]

    few = [trial for trial in session.study.front if trial.objectives()[0] <= FEW]
    if not few:
        return None
    trial = min(few, key=kl)
    found = pipeline.held_out_scores(session, trial)
    if found is None:
        return None
    return {
        "search": list(trial.objectives()),
        "held_out": [score.value for score in found.after],
        "held_out_baseline": [score.value for score in found.before],
    }
