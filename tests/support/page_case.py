"""A finished run that has kept everything for its page, and whose texts are hostile."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from heretic.events import (
    SearchFinished,
    SearchStarted,
    StageFinished,
    StageStarted,
    TrialFinished,
)
from heretic.records import Score
from heretic.report.page.run import read_run
from heretic.runs.events import EventsFile
from heretic.runs.folder import RunFolder
from heretic.runs.shown import (
    ORIGINAL,
    Asked,
    Exported,
    ModuleSize,
    Reply,
    ReplySet,
    Shown,
    write_shown,
)
from tests.support import run_case

HOSTILE = (
    "</script><script>alert(1)</script><img src=http://x.test/a onerror=alert(2)>{{7*7}}\u202e"
)
ESCAPE = "\x1b[31m"
GEOMETRY = tuple(
    {
        "layer": layer,
        "silhouette": 0.1 * layer,
        "probe": 0.5 + 0.1 * layer,
        "cos_means": 0.9,
        "cos_previous": None if layer == 0 else 0.5,
        "norm_good": 3.0,
        "norm_bad": 4.0,
        "norm_direction": 0.0 if layer == 0 else 1.0,
    }
    for layer in range(3)
)


def shown_of(numbers: list[int], text: str = HOSTILE) -> Shown:
    replies = {ORIGINAL: (Reply(f"No. {text}", "refusal", (0, 3)), Reply("Yes.", "compliance"))}
    for number in numbers:
        replies[str(number)] = (Reply(f"Sure.{ESCAPE}", "compliance"), Reply("Yes.", "compliance"))
    score = Score("refusals", 0.0, "minimize", "0/2", interval=(0.0, 0.6))
    return Shown(
        replies=(
            ReplySet(
                "bad", 8, 2, (Asked(text, None, "one"), Asked("a plain one", text, "two")), replies
            ),
        ),
        geometry=GEOMETRY,
        geometry_prompts=(5, 5),
        sizes={
            str(number): tuple(ModuleSize(layer, "mlp.down_proj", 0.1) for layer in range(3))
            for number in numbers
        },
        exports=(
            Exported(
                numbers[0],
                "2026-01-02T03:04:05+00:00",
                "merge",
                "/home/somebody/saved",
                {"from disk": (score,), "held out": (score,)},
                {ORIGINAL: (score,), "edited": (score,)},
                64,
            ),
        ),
    )


def make_run(path: Path) -> Path:
    """Make it; returns its path."""
    folder = run_case.make_run(path)
    numbers = sorted(read_run(folder.path).proposed)
    with folder.lock():
        write_shown(folder, shown_of(numbers))
        settings = {**run_case.MANIFEST.settings, "system_prompt": HOSTILE, "seed": 7}
        manifest = replace(
            folder.require_manifest(),
            model=f"/home/somebody/{HOSTILE}",
            settings=settings,
            versions={"torch": "2.0"},
            found={
                **run_case.MANIFEST.found,
                "layers": 3,
                "baseline": [
                    {**score.to_dict(), "value": 0.9, "display": "9/10"}
                    for score in folder.read_trials()[0].scores
                ],
            },
        )
        folder.write_manifest(manifest)
    _write_events(folder)
    return folder.path


def _write_events(folder: RunFolder) -> None:
    """Events whose titles name a user, and the ends of all trials."""
    clock = iter(range(1, 1000))
    begin = datetime.fromisoformat(run_case.MANIFEST.created)
    file = EventsFile(folder.events_path, lambda: begin + timedelta(seconds=next(clock)))
    trials = folder.read_trials()
    file.write("CommandStarted", {"since": 3.0})
    for title in ("Loading /home/somebody/model", "Uploading to somebody/model", "Loading model"):
        file.emit(StageStarted(title))
        file.emit(StageFinished())
    file.emit(SearchStarted(0, len(trials), ()))
    for trial in trials:
        file.emit(TrialFinished(trial, trials, trial.number + 1, len(trials), 1.0, None))
    file.emit(SearchFinished("done", len(trials), 1.0))
    file.write("CommandEnded", {"reason": "done"})
