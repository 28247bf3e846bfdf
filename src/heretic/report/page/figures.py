"""What each figure of a page shows, as rows of plain values: one function a figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from heretic.errors import HereticError
from heretic.records.trial import Score, Trial, dominates, words_of
from heretic.records.volume import MARGIN, hypervolume
from heretic.report.front import FrontData, front_data
from heretic.report.page.run import RunData
from heretic.runs.events import BEFORE, stage_times, trial_times
from heretic.system.display import counted

Row = dict[str, Any]
Point = tuple[float, ...]

MOST_ROWS = 40
"""Of the map of trials over layers."""

WEIGHT = "ablation weight"

MOST_STAGES = 14
"""Of the times by stage; the rest is one bar."""


def front_of(run: RunData) -> FrontData | None:
    """Trials in the plane of the first two objectives; None if there are none to place."""
    try:
        return front_data(run.trials, baseline=run.baseline, chosen=run.chosen)
    except HereticError:
        return None


def front_rows(run: RunData) -> list[Row]:
    """The trials that the picture of the front holds, the original, and intervals.

    Each has `x`, `y`, `role` (front, other trial, chosen, original), `on_front`, `label`, and
    `x_low`, `x_high`, `y_low`, `y_high` where intervals are known.
    """
    data = front_of(run)
    if data is None:
        return []
    chosen = data.chosen.trial if data.chosen else None
    found: list[Row] = []
    for role, points in (("other trial", data.others), ("front", data.front)):
        for point in points:
            trial = run.trial(point.trial)
            if trial is None or point.x > data.x_limit:
                continue
            named = "chosen" if point.trial == chosen else role
            found.append(
                {
                    "x": point.x,
                    "y": point.y,
                    "role": named,
                    "on_front": role == "front",
                    "label": run.label(point.trial),
                    "names": ", ".join(run.proposed.get(point.trial, [])),
                    "scores": _told(trial.scores),
                    **_ends("x", trial.score(data.x_name)),
                    **_ends("y", trial.score(data.y_name)),
                }
            )
    if data.original is not None:
        found.append(
            {
                "x": data.original.x,
                "y": data.original.y,
                "role": "original",
                "on_front": False,
                "label": "original model",
                "names": "original",
                "scores": _told(run.baseline),
                **_ends("y", _score(run.baseline, data.y_name)),
            }
        )
    return found


def _told(scores: Iterable[Score]) -> str:
    return ", ".join(f"{words_of(score.name)} {score.display}" for score in scores)


def _score(scores: Iterable[Score], name: str) -> Score | None:
    return next((score for score in scores if score.name == name), None)


def _ends(axis: str, score: Score | None) -> Row:
    if score is None or score.interval is None:
        return {}
    return {f"{axis}_low": score.interval[0], f"{axis}_high": score.interval[1]}


def growth_rows(runs: Sequence[RunData]) -> list[Row]:
    """Hypervolume after each complete trial: `trials`, `volume`, `seconds` where known, `run`.

    It is a share of the box between the best and the worst value of each objective that any of the
    runs has seen, the worst moved outward by a tenth; so the runs share one measure.
    """
    seen = {id(run): _seen(run) for run in runs}
    points = [trial.objectives() for trials in seen.values() for trial in trials]
    if len({objective_names(run) for run in runs}) != 1 or not points or not points[0]:
        return []
    columns = list(zip(*points, strict=True))
    best = tuple(map(min, columns))
    worst = tuple(max(one) + MARGIN * ((max(one) - min(one)) or 1.0) for one in columns)
    whole = hypervolume([best], worst)
    return [row for run in runs for row in _growth(run, seen[id(run)], worst, whole)]


def objective_names(run: RunData) -> tuple[str, ...]:
    """Names of the scores that the search optimises; runs with others cannot be compared."""
    trials = _seen(run)
    scores = trials[0].scores if trials else run.baseline
    return tuple(score.name for score in scores if score.optimization != "none")


def _seen(run: RunData) -> list[Trial]:
    return [trial for trial in run.trials if trial.state == "complete" and not trial.pruned]


def _growth(run: RunData, trials: Sequence[Trial], worst: Point, whole: float) -> list[Row]:
    times = trial_times(run.events)
    kept: list[Point] = []
    rows: list[Row] = []
    volume = 0.0
    for count, trial in enumerate(trials, start=1):
        point = trial.objectives()
        if not any(dominates(other, point) or other == point for other in kept):
            kept = [other for other in kept if not dominates(point, other)] + [point]
            volume = hypervolume(kept, worst) / whole
        row: Row = {
            "run": run.name,
            "trials": count,
            "trial": trial.number,
            "volume": volume,
        }
        if trial.number in times:
            row["seconds"] = times[trial.number]
        rows.append(row)
    return rows


def mapped(run: RunData) -> list[Trial]:
    """The trials of the front that the map has room for, with those that matter most."""
    if len(run.front) <= MOST_ROWS:
        return list(run.front)
    named = [trial for trial in run.front if trial.number in run.proposed]
    others = [trial for trial in run.front if trial.number not in run.proposed]
    kept = {trial.number for trial in [*named, *others[: MOST_ROWS - len(named)]]}
    return [trial for trial in run.front if trial.number in kept]


def map_rows(run: RunData) -> tuple[str, list[Row]]:
    """Trials over layers: what a value is, and rows with `trial`, `layer`, `component`, `value`.

    Values are ablation weights of the trials on the front, or, where plans are fits, |dW| / |W| of
    the proposed trials. Of several directions in a layer, the largest weight counts.
    """
    if any(trial.plan.fits for trial in run.front):
        return "|dW| / |W|", size_rows(run)
    layers = int(run.manifest.found.get("layers") or 0)
    rows = [
        {
            "trial": run.label(trial.number),
            "layer": layer,
            "component": component,
            "value": max(trial.plan.ablation_weights(component, layer), key=abs, default=0.0),
        }
        for trial in mapped(run)
        for component, _ in trial.plan.kernels
        for layer in range(layers)
    ]
    return WEIGHT, rows


def size_rows(run: RunData) -> list[Row]:
    """|dW| / |W| of the proposed trials: `trial`, `layer`, `component`, `value`."""
    return [
        {
            "trial": run.label(int(number)),
            "layer": size.layer,
            "component": size.component,
            "value": size.relative,
        }
        for number, sizes in run.shown.sizes.items()
        for size in sizes
        if size.relative is not None
    ]


def time_rows(run: RunData) -> list[Row]:
    """Seconds by stage, the longest first: `stage`, `seconds`, `times` (how often it ran)."""
    sums: dict[str, list[float]] = {}
    for stage in stage_times(run.events):
        sums.setdefault(_without_name(stage.title), []).append(stage.seconds)
    rows: list[Row] = [
        {"stage": title, "seconds": sum(times), "times": len(times)}
        for title, times in sums.items()
        if title != BEFORE or sum(times) > 0
    ]
    rows.sort(key=lambda row: -row["seconds"])
    rest = rows[MOST_STAGES:]
    if rest:
        total = sum(row["seconds"] for row in rest)
        count = sum(row["times"] for row in rest)
        named = {"stage": counted(len(rest), "shorter stage"), "seconds": total, "times": count}
        rows = [*rows[:MOST_STAGES], named]
    return rows


_NAMES_SOMETHING = re.compile(
    r"(Loading|Saving to|Uploading to|Scoring|Comparing|Converting|Benchmark) "
    r"(?!prompts$|the (?:original model|chosen trial|plan)\b|in (?:full precision|llama\.cpp)|"
    r"with |\d+ trials )"
)
"""Stages whose titles go on with a path, a Hub id or another name."""


def _without_name(title: str) -> str:
    """A stage's title without the path or the name that it is about: these tell users' names."""
    found = _NAMES_SOMETHING.match(title)
    return title if found is None else f"{found[1].removesuffix(' to')} ..."


SEPARATION = {"probe": "linear probe", "silhouette": "silhouette"}
COSINES = {
    "cos_means": "good, bad",
    "cos_good_direction": "good, direction",
    "cos_bad_direction": "bad, direction",
    "cos_directions": "direction by means, by medians",
    "cos_previous": "direction, that of the layer before",
}
NORMS = {"norm_good": "good", "norm_bad": "bad", "norm_direction": "direction"}


def geometry_rows(run: RunData, names: Mapping[str, str]) -> list[Row]:
    """Figures of each layer: `layer`, `figure` (by the names given), `value`."""
    return [
        {"layer": int(row["layer"] or 0), "figure": name, "value": row[key]}
        for row in run.shown.geometry
        for key, name in names.items()
        if row.get(key) is not None
    ]
