"""What the page shows, as plain data: no drawing, and texts that are safe to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from heretic.errors import HereticError
from heretic.records.plan import Plan
from heretic.records.selection import names_by_row
from heretic.records.trial import Score, Trial, front
from heretic.report.front import AXIS_LABELS, FrontData, front_data
from heretic.runs.events import stage_times
from heretic.runs.listing import RunSummary, target_of
from heretic.runs.shown import ORIGINAL
from heretic.system.display import format_duration, safe
from heretic.system.hub import is_local
from heretic.ui.keys import key_of
from heretic.ui.watch import Stage, Watch

MOST_ROWS = 25
"""Of the table of the front, and of failed trials."""

MOST_EXCHANGES = 6
"""Prompts with sample replies."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A row of the list of runs; `key` names its page, and `name` is what commands call it."""

    key: str
    name: str
    model: str
    state: str
    trials: str
    failed: str
    front: str
    used: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Now:
    """What a run is doing.

    Attributes:
        done: Share of the trials that are complete; None if their number is unknown.
        doing: A line on the stage and the trial in progress; empty if nothing goes on.
        left: How long the search takes from here; empty if that is unknown.
        notices: Level and text of the last ones, the newest first.
    """

    state: str
    trials: str
    done: float | None
    doing: str
    left: str
    notices: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """A trial in the picture of the front; -1 is the original."""

    number: int
    x: float
    y: float
    role: str
    label: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class FrontChart:
    """The picture of the front; axes are named by what they measure."""

    x_name: str
    y_name: str
    points: tuple[ChartPoint, ...]
    hidden: int


@dataclass(frozen=True, slots=True)
class FrontRow:
    """A row of the table of the front."""

    number: int
    label: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrontTable:
    """The front as a table.

    Attributes:
        headings: The scores' names.
        labels: What the trials of the whole front are called, by number.
    """

    headings: tuple[str, ...]
    original: tuple[str, ...]
    rows: tuple[FrontRow, ...]
    left_out: int
    labels: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Line:
    """A figure over layers; None where there is none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """A reply: whose, what the detector calls it, and its text."""

    model: str
    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and the replies to it."""

    prompt: str
    replies: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class TrialView:
    """Everything about one trial.

    Attributes:
        scores: Name, of the trial, of the original.
        plan: Lines of what it edits: name and value.
        weights: Ablation weights by component; none of plans that are fits.
        sizes: |dW| / |W| by component, where they were measured.
    """

    number: int
    label: str
    scores: tuple[tuple[str, str, str], ...]
    plan: tuple[tuple[str, str], ...]
    weights: tuple[Line, ...]
    sizes: tuple[Line, ...]
    exchanges: tuple[Exchange, ...]
    seconds: float


def run_rows(
    runs: Iterable[RunSummary], states: Mapping[Path, str] | None = None
) -> tuple[RunRow, ...]:
    """The list of runs.

    Args:
        states: What is known better than their folders tell.
    """
    states = states or {}
    return tuple(
        RunRow(
            key=key_of(run.name),
            name=safe(run.name),
            model=safe(short_model(run.model)),
            state=states.get(run.path, run.state),
            trials=f"{run.completed} of {run.n_trials}" if run.n_trials else str(run.completed),
            failed=str(run.failed),
            front=str(run.front),
            used=run.updated.replace("T", " ")[:16],
            note=safe(run.note or ""),
        )
        for run in runs
    )


def short_model(model: str) -> str:
    """The name of a model's folder, or its Hub id."""
    return Path(model).name if is_local(model) else model


def now_of(watch: Watch, at: datetime, state: str) -> Now:
    """What a run, which is in this state, is doing at a time."""
    progress, data = watch.progress, watch.data
    complete = sum(trial.state == "complete" for trial in watch.trials)
    target = target_of(data.manifest) if data is not None else None
    target = max(target or 0, progress.target or 0) or None
    works = watch.is_locked and progress.ended is None
    parts = []
    if works and progress.stage is not None:
        parts.append(stage_text(progress.stage))
    if works and progress.trial is not None:
        within = f", {stage_text(progress.within)}" if progress.within is not None else ""
        parts.append(f"trial {progress.trial}{within}")
    left = progress.left(at) if works and progress.searching else None
    return Now(
        state=state,
        trials=f"{complete} of {target} trials" if target else f"{complete} trials",
        done=None if not target else min(1.0, complete / target),
        doing=safe("; ".join(parts)),
        left="" if left is None else f"about {format_duration(left)} left",
        notices=tuple((level, safe(text)) for level, text in list(progress.notices)[:-9:-1]),
    )


def stage_text(stage: Stage) -> str:
    """A stage with how far it has come."""
    if stage.done is None or stage.total is None:
        return stage.title
    return f"{stage.title} {stage.done}/{stage.total} {stage.unit}".strip()


def labels_of(rows: Sequence[Trial]) -> dict[int, str]:
    """What the trials of a front are called: `trial 12 (knee)`."""
    found = {}
    for trial, names in zip(rows, names_by_row(rows), strict=True):
        named = f" ({', '.join(names)})" if names else ""
        found[trial.number] = f"trial {trial.number}{named}"
    return found


def chart_of(watch: Watch) -> FrontChart | None:
    """The picture of the front; None while there is none to draw."""
    data = watch.data
    baseline = data.baseline if data is not None else ()
    chosen = data.chosen if data is not None else None
    try:
        found = front_data(watch.trials, baseline=baseline, chosen=chosen)
    except HereticError:
        return None
    points = [*_points(watch, found)]
    if found.original is not None:
        one = found.original
        points.append(ChartPoint(-1, one.x, one.y, "original", "original model"))
    return FrontChart(
        safe(AXIS_LABELS.get(found.x_name, found.x_name)),
        safe(AXIS_LABELS.get(found.y_name, found.y_name)),
        tuple(points),
        found.hidden,
    )


@dataclass(frozen=True, slots=True)
class FrontView:
    """The front, as picture and as table."""

    chart: FrontChart | None
    table: FrontTable


def front_of(watch: Watch) -> FrontView:
    """The front; with many trials on it this takes a tenth of a second."""
    return FrontView(chart_of(watch), table_of(watch))


def _points(watch: Watch, found: FrontData) -> Iterable[ChartPoint]:
    trials = {trial.number: trial for trial in watch.trials}
    chosen = found.chosen.trial if found.chosen is not None else None
    for role, points in (("other trial", found.others), ("front", found.front)):
        for point in points:
            if point.x > found.x_limit:
                continue
            names = found.names.get(point.trial, "")
            label = f"trial {point.trial}" + (f" ({names})" if names else "")
            score = trials[point.trial].score(found.y_name) if role == "front" else None
            low, high = score.interval if score is not None and score.interval else (None, None)
            shown = "chosen" if point.trial == chosen else role
            yield ChartPoint(point.trial, point.x, point.y, shown, label, low, high)


def table_of(watch: Watch) -> FrontTable:
    """The front as a table."""
    rows = front(watch.trials)
    data = watch.data
    baseline = data.baseline if data is not None else ()
    names = [score.name for score in (rows[0].scores if rows else baseline)]
    labels = labels_of(rows)
    shown = tuple(
        FrontRow(trial.number, labels[trial.number], _cells(names, trial.scores))
        for trial in rows[:MOST_ROWS]
    )
    return FrontTable(
        tuple(map(safe, names)),
        _cells(names, baseline),
        shown,
        max(0, len(rows) - MOST_ROWS),
        labels,
    )


def _cells(names: Sequence[str], scores: Iterable[Score]) -> tuple[str, ...]:
    known = {score.name: score for score in scores}
    return tuple(safe(known[name].with_interval()) if name in known else "" for name in names)


def trial_of(watch: Watch, number: int, labels: Mapping[int, str]) -> TrialView | None:
    """All that is known of a trial; None if there is none of that number.

    Args:
        labels: As of the table of the front, which takes long to find with many trials.
    """
    trial, data = watch.trial(number), watch.data
    if trial is None or data is None:
        return None
    original = {score.name: score.with_interval() for score in data.baseline}
    layers = int(data.manifest.found.get("layers") or 0)
    return TrialView(
        number=number,
        label=labels.get(number, f"trial {number}"),
        scores=tuple(
            (safe(one.name), safe(one.with_interval()), safe(original.get(one.name, "")))
            for one in trial.scores
        ),
        plan=plan_lines(trial.plan),
        weights=_weights(trial.plan, layers),
        sizes=_sizes(watch, number),
        exchanges=_exchanges(watch, number),
        seconds=trial.seconds,
    )


def plan_lines(plan: Plan) -> tuple[tuple[str, str], ...]:
    """What a plan edits, as names and values."""
    lines: list[tuple[str, str]] = [
        ("directions", plan.direction_scope),
        ("rows", plan.row_normalization),
    ]
    if plan.direction_index is not None:
        lines.append(("direction of layer", f"{plan.direction_index:.4g}"))
    if plan.rank != 1:
        lines.append(("directions in a layer", str(plan.rank)))
    for component, kernel in plan.kernels:
        figures = zip(plan.figure_names, kernel.figures(), strict=False)
        told = ", ".join(f"{name} {value:.4g}" for name, value in figures if value is not None)
        lines.append((component, told))
    return tuple((safe(name), safe(value)) for name, value in lines)


def _weights(plan: Plan, layers: int) -> tuple[Line, ...]:
    if plan.fits:
        return ()
    return tuple(
        Line(
            safe(component),
            tuple(
                max(plan.ablation_weights(component, layer), key=abs, default=0.0)
                for layer in range(layers)
            ),
        )
        for component, _ in plan.kernels
    )


def _sizes(watch: Watch, number: int) -> tuple[Line, ...]:
    found = watch.data.shown.sizes.get(str(number), ()) if watch.data is not None else ()
    by_component: dict[str, dict[int, float | None]] = {}
    for size in found:
        by_component.setdefault(size.component, {})[size.layer] = size.relative
    return tuple(
        Line(safe(name), tuple(values.get(layer) for layer in range(max(values) + 1)))
        for name, values in by_component.items()
    )


def _exchanges(watch: Watch, number: int) -> tuple[Exchange, ...]:
    """The kept replies to the first prompts of the first set."""
    shown = watch.data.shown if watch.data is not None else None
    for found in shown.replies if shown is not None else ():
        models = [name for name in (ORIGINAL, str(number)) if name in found.replies]
        if str(number) not in models:
            continue
        return tuple(
            Exchange(
                safe(asked.user),
                tuple(
                    Said(
                        "original" if name == ORIGINAL else "edited",
                        found.replies[name][place].label or "",
                        safe(found.replies[name][place].text),
                    )
                    for name in models
                ),
            )
            for place, asked in enumerate(found.prompts[:MOST_EXCHANGES])
        )
    return ()


def stages_of(watch: Watch) -> tuple[tuple[str, str], ...]:
    """Seconds by stage of all commands of a run, the longest first."""
    sums: dict[str, float] = {}
    for stage in stage_times(watch.data.events if watch.data is not None else ()):
        sums[stage.title] = sums.get(stage.title, 0.0) + stage.seconds
    ordered = sorted(sums.items(), key=lambda one: -one[1])[:12]
    return tuple(
        (safe(title), format_duration(seconds)) for title, seconds in ordered if seconds > 0
    )


def failed_of(watch: Watch) -> tuple[tuple[int, str], ...]:
    """Trials without scores, with the reason, the last first."""
    found = [trial for trial in watch.trials if trial.state == "failed"]
    return tuple((one.number, safe(one.failure or "")) for one in reversed(found[-MOST_ROWS:]))


def score_rows(rows: Mapping[str, Sequence[Mapping[str, object]]]) -> tuple[tuple[str, ...], ...]:
    """Scores that a worker has told, as a table: a heading, then a row for each score."""
    names = list(dict.fromkeys(str(one["name"]) for some in rows.values() for one in some))
    told = {
        label: {str(one["name"]): Score.from_dict(dict(one)).with_interval() for one in some}
        for label, some in rows.items()
    }
    return (
        ("score", *map(safe, rows)),
        *((safe(name), *(safe(told[label].get(name, "")) for label in rows)) for name in names),
    )


def task_exchanges(found: Mapping[str, Any], trial: int) -> tuple[Exchange, ...]:
    """Sample replies that a worker has told."""
    replies = found["replies"]
    models = ((ORIGINAL, "original"), (str(trial), "edited"))
    return tuple(
        Exchange(
            safe(str(prompt["user"])),
            tuple(
                Said(
                    name,
                    str(replies[key][place].get("label") or ""),
                    safe(str(replies[key][place]["text"])),
                )
                for key, name in models
                if key in replies
            ),
        )
        for place, prompt in enumerate(found["prompts"])
    )
