"""What trackers are told: numbers, and the names of scores. Never texts of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from heretic.events import Event, SearchFinished, SearchStarted, TrialFinished
from heretic.records.trial import Score

_ODD = re.compile(r"[^A-Za-z0-9_.-]+")


def figures_of(event: Event) -> dict[str, float] | None:
    """The figures of an event; None if it has none for a tracker.

    Of a trial: its number, seconds, whether it failed, scores; and the front's size, its least
    first objective, and the number of completed trials.
    """
    match event:
        case SearchStarted():
            return _scores("original", event.baseline)
        case TrialFinished():
            trial = event.trial
            found = {
                "trial": float(trial.number),
                "seconds": trial.seconds,
                "failed": float(trial.state == "failed"),
                "completed": float(event.completed),
                "elapsed": event.elapsed,
                "front/size": float(len(event.front)),
                **_scores("score", trial.scores),
            }
            best = [other.scores[0] for other in event.front[:1] if other.scores]
            return found | _scores("front/first", best)
        case SearchFinished():
            return {"completed": float(event.completed), "elapsed": event.elapsed}
        case _:
            return None


def _scores(above: str, scores: tuple[Score, ...] | list[Score]) -> dict[str, float]:
    """Scores by name; without those that are withheld, not finite, or only a bound."""
    return {
        f"{above}/{_ODD.sub('_', score.name)}": score.value
        for score in scores
        if not score.withheld and not score.bound and math.isfinite(score.value)
    }


def figures_in(settings: Mapping[str, Any]) -> dict[str, float]:
    """The settings that are plain figures or switches; texts, paths and tables are left out."""
    return {
        name: float(value)
        for name, value in settings.items()
        if isinstance(value, bool | int | float) and math.isfinite(value)
    }
