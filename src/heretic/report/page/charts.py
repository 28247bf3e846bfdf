"""Draws the rows of `figures` with Altair (extra `report`): for the page and for picture files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from heretic.records.trial import words_of
from heretic.report.front import AXIS_LABELS
from heretic.report.page import figures
from heretic.report.page.axes import in_lines, names_beside, rows_axis, whole_numbers
from heretic.report.page.run import RunData
from heretic.system.display import counted

Row = Mapping[str, Any]
Scale = Literal["linear", "log"]

BLUE, RED, GREEN, ORANGE, VIOLET, GREY = (
    "#3b7fc4",
    "#d1495b",
    "#2b9674",
    "#d9822b",
    "#8b6fc9",
    "#8a919c",
)
"""Readable on white and on the dark theme's background: contrast of at least 3 to 1 on both."""

ROLES = {"front": BLUE, "chosen": RED, "original": GREEN, "other trial": GREY}
SHAPES = {
    "front": "circle",
    "chosen": "diamond",
    "original": "triangle-up",
    "other trial": "circle",
}
SERIES = (BLUE, RED, GREEN, ORANGE, VIOLET, GREY)

LEGEND_CELLS = 46
"""Characters of a legend's line that fit a chart on a telephone."""

HEIGHT, FRONT_HEIGHT = 260, 340


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a page.

    Attributes:
        name: Of its element and of its files.
        title: Above it.
        text: What it shows, for those who do not see it, and below it.
        spec: In Vega-Lite, as wide as its place.
    """

    name: str
    title: str
    text: str
    spec: Mapping[str, Any]


def figures_of(run: RunData) -> list[Figure]:
    """The figures of one run, without those that it has no data for."""
    found = [
        _front(run),
        *_growth([run]),
        *_maps(run),
        *_sizes(run),
        _lines(
            "separation",
            "How well each layer separates the prompts",
            "Balanced accuracy of a cross-validated linear probe (0.5 is chance) and mean "
            "silhouette (0 is mixed) of the residuals of good and bad prompts.",
            figures.geometry_rows(run, figures.SEPARATION),
        ),
        _lines(
            "cosines",
            "Cosines of residuals and directions",
            "Cosines of the mean residuals of good and bad prompts with each other and with the "
            "direction from one to the other, layer by layer.",
            figures.geometry_rows(run, figures.COSINES),
        ),
        _lines(
            "norms",
            "Lengths of residuals and directions",
            "Lengths of the mean residuals and of the direction between them, logarithmic.",
            figures.geometry_rows(run, figures.NORMS),
            scale="log",
        ),
        _times(run),
    ]
    return [figure for figure in found if figure is not None]


def figures_of_runs(runs: Sequence[RunData]) -> list[Figure]:
    """The figures that compare runs."""
    found = [_fronts(runs), *_growth(runs)]
    return [figure for figure in found if figure is not None]


def data_of(rows: Sequence[Row]) -> alt.InlineData:
    """Rows as the data of a chart."""
    return alt.InlineData(values=[dict(row) for row in rows])


def spec_of(chart: Any, height: int = HEIGHT) -> dict[str, Any]:
    """The specification of a chart that is as wide as its place."""
    spec: dict[str, Any] = chart.properties(width="container", height=height).to_dict()
    spec.pop("config", None)  # the theme is chosen where the chart is shown
    return spec


def _objective(name: str) -> str:
    return AXIS_LABELS.get(name, name)


def _front(run: RunData) -> Figure | None:
    rows, data = figures.front_rows(run), figures.front_of(run)
    if data is None:
        return None
    scale = alt.Scale(domainMax=data.x_limit, clamp=True, nice=False)
    x = alt.X("x:Q", title=_objective(data.x_name), scale=scale)
    y = alt.Y("y:Q", title=_objective(data.y_name))
    base = alt.Chart(data_of(rows)).encode(x=x, y=y)
    on_front = base.transform_filter("datum.on_front")
    roles = alt.Color(
        "role:N",
        title=None,
        scale=alt.Scale(domain=list(ROLES), range=list(ROLES.values())),
        legend=alt.Legend(orient="top", symbolOpacity=1),
    )
    shapes = alt.Shape(
        "role:N",
        title=None,
        scale=alt.Scale(domain=list(SHAPES), range=list(SHAPES.values())),
        legend=alt.Legend(orient="top", symbolOpacity=1),
    )
    tip = [
        alt.Tooltip("label:N", title="model"),
        alt.Tooltip("scores:N", title="scores"),
    ]
    line = on_front.mark_line(interpolate="step-after", color=BLUE, opacity=0.6)
    points = base.mark_point(filled=True, size=70, opacity=0.9).encode(
        color=roles, shape=shapes, tooltip=tip
    )
    spans = _spans(base, rows, scale)
    told = " Bars are 95% intervals, with the prompts as a random sample." if spans else ""
    chart = alt.layer(*spans, line, points, *names_beside(base, rows, data.x_limit, FRONT_HEIGHT))
    hidden = f" Not shown, far to the right: {data.hidden}." if data.hidden else ""
    ended = run.ended_early
    early = f" Ended early, since another is better: {ended}." if ended else ""
    return Figure(
        "front",
        "Trials",
        f"Each point is a trial: {words_of(data.x_name)} to the right "
        f"({_better(run, data.x_name)}), {words_of(data.y_name)} upward "
        f"({_better(run, data.y_name)}). "
        f"No trial is better in both than one on the front.{told}{hidden}{early}",
        spec_of(chart, FRONT_HEIGHT),
    )


def _spans(base: alt.Chart, rows: Sequence[Row], scale: alt.Scale) -> list[Any]:
    """Bars of the intervals of the front's trials and of the original, in both directions."""
    found = []
    for axis in ("x", "y"):
        low, high = f"{axis}_low", f"{axis}_high"
        if not any(low in row for row in rows if row["role"] != "other trial"):
            continue
        bars = base.transform_filter(f"datum.role != 'other trial' && isValid(datum.{low})")
        start: Any = alt.X(f"{low}:Q", scale=scale) if axis == "x" else alt.Y(f"{low}:Q")
        found.append(
            bars.mark_rule(opacity=0.5, strokeWidth=2).encode(
                **{axis: start, f"{axis}2": f"{high}:Q"},
                color=alt.Color("role:N"),
            )
        )
    return found


def _better(run: RunData, name: str) -> str:
    wanted = {score.name: score.optimization for score in run.front[0].scores} if run.front else {}
    return "more is better" if wanted.get(name) == "maximize" else "less is better"


def _fronts(runs: Sequence[RunData]) -> Figure | None:
    rows = [
        {**row, "run": run.name}
        for run in runs
        for row in figures.front_rows(run)
        if row["on_front"]
    ]
    data = next((found for run in runs if (found := figures.front_of(run)) is not None), None)
    if not rows or data is None or len(set(map(figures.objective_names, runs))) > 1:
        return None
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X("x:Q", title=_objective(data.x_name)),
        y=alt.Y("y:Q", title=_objective(data.y_name)),
        color=_series("run", rows),
    )
    points = base.mark_point(filled=True, size=70).encode(
        tooltip=[alt.Tooltip("run:N"), alt.Tooltip("label:N"), alt.Tooltip("scores:N")]
    )
    chart = alt.layer(base.mark_line(interpolate="step-after", opacity=0.6), points)
    return Figure(
        "fronts",
        "The fronts",
        f"The front of each run: {words_of(data.x_name)} to the right, "
        f"{words_of(data.y_name)} upward.",
        spec_of(chart, 340),
    )


def _series(field: str, rows: Sequence[Row]) -> alt.Color:
    """Colours of series; their names stand side by side as far as they fit a narrow screen."""
    longest = max((len(str(row[field])) for row in rows), default=1)
    return alt.Color(
        f"{field}:N",
        title=None,
        sort=None,
        scale=alt.Scale(range=list(SERIES)),
        legend=alt.Legend(
            orient="top", columns=max(1, min(3, LEGEND_CELLS // (longest + 4))), labelLimit=300
        ),
    )


def _growth(runs: Sequence[RunData]) -> list[Figure]:
    rows = figures.growth_rows(runs)
    timed = [row for row in rows if "seconds" in row]
    told = (
        "The share of the box between best and worst values that the front dominates"
        " (hypervolume); more is better."
    )
    found = []
    for name, data, x, title in (
        ("growth", rows, "trials", "trials that were scored to the end"),
        ("growth-time", timed, "minutes", "minutes of commands, menus included"),
    ):
        if len(data) < 2:
            continue
        shown = [{**row, "minutes": row.get("seconds", 0) / 60} for row in data]
        if len(runs) == 1:  # its folder's name may be a person's
            shown = [{key: row[key] for key in row if key != "run"} for row in shown]
        chart = (
            alt.Chart(data_of(shown))
            .mark_line(interpolate="step-after", point=alt.OverlayMarkDef(size=24))
            .encode(
                x=alt.X(f"{x}:Q", title=title, axis=whole_numbers(x, shown)),
                y=alt.Y("volume:Q", title="hypervolume", scale=alt.Scale(zero=False)),
                color=_series("run", rows) if len(runs) > 1 else alt.value(BLUE),
                tooltip=[
                    *([alt.Tooltip("run:N")] if len(runs) > 1 else []),
                    alt.Tooltip("trial:Q"),
                    alt.Tooltip("volume:Q", format=".4f"),
                ],
            )
        )
        over = "over trials" if x == "trials" else "over time"
        found.append(Figure(name, f"Hypervolume {over}", told, spec_of(chart)))
    return found


def _maps(run: RunData) -> list[Figure]:
    value, rows = figures.map_rows(run)
    shown = {row["trial"] for row in rows}
    left_out = sum(run.label(trial.number) not in shown for trial in run.front)
    more = f" Not shown: {counted(left_out, 'trial')} of the front." if left_out else ""
    those = "trials of the front" if value == figures.WEIGHT else "proposed and saved trials"
    found = []
    for component in sorted({row["component"] for row in rows}):
        some, height = in_lines([row for row in rows if row["component"] == component], "trial")
        trials = list(dict.fromkeys(row["lines"] for row in some))
        negative = min(row["value"] for row in some) < 0
        most = max(abs(row["value"]) for row in some)
        # As strong a colour for as large a weight, on both sides of zero.
        scale = (
            alt.Scale(scheme="blueorange", domain=[-most, 0, most])
            if negative
            else alt.Scale(scheme="viridis")
        )
        chart = (
            alt.Chart(data_of(some))
            .mark_rect()
            .encode(
                x=alt.X("layer:O", title="layer", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
                y=rows_axis(trials),
                color=alt.Color("value:Q", title=value, scale=scale),
                tooltip=[
                    alt.Tooltip("trial:N"),
                    alt.Tooltip("layer:O"),
                    alt.Tooltip("value:Q", title=value, format=".3g"),
                ],
            )
        )
        found.append(
            Figure(
                f"map-{component}",
                f"Trials over layers: {component}",
                f"Rows are {those}, columns are layers; colour is the {value}.{more}",
                spec_of(chart, max(80, height * len(trials))),
            )
        )
    return found


def _sizes(run: RunData) -> list[Figure]:
    rows = [
        row
        for row in figures.size_rows(run)
        if run.focus is not None and row["trial"] == run.label(run.focus)
    ]
    if not rows or run.focus is None:
        return []
    chart = (
        alt.Chart(data_of(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:Q", title="layer", axis=whole_numbers("layer", rows)),
            y=alt.Y("value:Q", title="|dW| / |W|"),
            color=_series("component", rows),
            tooltip=[
                alt.Tooltip("component:N"),
                alt.Tooltip("layer:Q"),
                alt.Tooltip("value:Q", format=".3g"),
            ],
        )
    )
    told = "Frobenius norm of the change, as a share of the weight's; experts count as one."
    title = f"Size of the edit: {run.label(run.focus)}"
    return [Figure("sizes", title, told, spec_of(chart))]


def _lines(
    name: str, title: str, text: str, rows: Sequence[Row], scale: Scale = "linear"
) -> Figure | None:
    if scale == "log":
        rows = [row for row in rows if row["value"] > 0]
    zero = alt.Undefined if scale == "log" else False
    if not rows:
        return None
    chart = (
        alt.Chart(data_of(rows))
        .mark_line(point=alt.OverlayMarkDef(size=20))
        .encode(
            x=alt.X("layer:Q", title="layer", axis=whole_numbers("layer", rows)),
            y=alt.Y(
                "value:Q",
                title=None,
                scale=alt.Scale(type=scale, zero=zero),
            ),
            color=_series("figure", rows),
            tooltip=[
                alt.Tooltip("figure:N"),
                alt.Tooltip("layer:Q"),
                alt.Tooltip("value:Q", format=".3f"),
            ],
        )
    )
    return Figure(name, title, text, spec_of(chart))


def _times(run: RunData) -> Figure | None:
    rows, height = in_lines(figures.time_rows(run), "stage")
    if not rows:
        return None
    chart = (
        alt.Chart(data_of(rows))
        .mark_bar(color=BLUE)
        .encode(
            x=alt.X("seconds:Q", title="seconds"),
            y=rows_axis([row["lines"] for row in rows]),
            tooltip=[
                alt.Tooltip("stage:N"),
                alt.Tooltip("seconds:Q", format=".1f"),
                alt.Tooltip("times:Q", title="times"),
            ],
        )
    )
    told = "Seconds by stage; the search is what no stage within it took."
    return Figure("time", "Where the time went", told, spec_of(chart, height * len(rows)))
