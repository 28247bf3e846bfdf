"""The picture of a search's front: all trials, the front among them, the chosen trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heretic.errors import HereticError
from heretic.records.selection import names_by_row
from heretic.records.trial import Score, Trial, front, words_of
from heretic.report.drawing import new_figure, save_figure
from heretic.report.labels import Named, lifts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXIS_LABELS = {
    "refusals": "refusals, share of the prompts",
    "kl_divergence": "KL divergence from the original model, nats",
}
NEAR_EDGE = 0.85
"""Part of the horizontal axis beyond which a name would leave the picture."""

CELL_WIDTH, LINE_HEIGHT = 4.5, 9
"""Points of a name's text."""

PLAIN, FRONT, CHOSEN, ORIGINAL = "#b4bac4", "#0b5cad", "#d1495b", "#333333"


@dataclass(frozen=True, slots=True)
class Point:
    """One trial in the plane of two scores; `label` is the text shown for it."""

    trial: int
    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class FrontData:
    """The content of the picture of a front.

    Attributes:
        x_name: Score on the horizontal axis: the second optimised one (e.g. `kl_divergence`).
        y_name: Score on the vertical axis: the first optimised one (e.g. `refusals`).
        front: Trials that no other dominates, from left to right.
        names: Names of trials on the front (`heretic.records.selection`), by the trial's number;
            none if the front has one trial.
        others: The other complete trials.
        original: The unedited model, with trial number -1; None if its scores are unknown.
        chosen: The chosen trial, which is also in `front` or `others`; None without a choice.
        x_limit: Right end of the horizontal axis. Trials far beyond the front are cut off, because
            they would compress the front into a corner.
        hidden: Number of trials beyond `x_limit`.
    """

    x_name: str
    y_name: str
    front: tuple[Point, ...]
    names: Mapping[int, str]
    others: tuple[Point, ...]
    original: Point | None
    chosen: Point | None
    x_limit: float
    hidden: int


def front_data(
    trials: Iterable[Trial],
    *,
    baseline: Sequence[Score] = (),
    chosen: int | None = None,
) -> FrontData:
    """Place trials in the plane of their first two optimised scores.

    Args:
        trials: All trials of a run, or only its front. Failed trials are left out, and pruned ones,
            for which only bounds are known.
        baseline: The unedited model's scores.
        chosen: Number of the chosen trial.

    Raises:
        HereticError: No trial is complete, or fewer than two scores are optimised.
    """
    complete = [trial for trial in trials if trial.state == "complete" and not trial.pruned]
    if not complete:
        raise HereticError(
            "No trial is complete, so there is no front to draw.",
            remedy="Run the search until a trial completes.",
        )
    optimised = [score for score in complete[0].scores if score.optimization != "none"]
    if len(optimised) < 2:
        raise HereticError(
            "The picture of a front needs two optimised scores; the trials have fewer.",
            remedy="Set `optimization` of a second scorer to minimize or maximize.",
        )
    y_name, x_name = optimised[0].name, optimised[1].name
    points = {
        trial.number: _point(trial.number, trial.scores, x_name, y_name) for trial in complete
    }
    rows = front(complete)
    best = {trial.number for trial in rows}
    names = zip(rows, names_by_row(rows) if len(rows) > 1 else (), strict=False)
    on_front = sorted(
        (points[number] for number in best), key=lambda point: (point.x, -point.y, point.trial)
    )
    original = _point(-1, baseline, x_name, y_name) if baseline else None
    limit = _limit(on_front, points.get(chosen) if chosen is not None else None, points.values())
    return FrontData(
        x_name=x_name,
        y_name=y_name,
        front=tuple(on_front),
        names={trial.number: ", ".join(of) for trial, of in names if of},
        others=tuple(point for number, point in points.items() if number not in best),
        original=original,
        chosen=points.get(chosen) if chosen is not None else None,
        x_limit=limit,
        hidden=sum(point.x > limit for point in points.values()),
    )


def draw_front(data: FrontData, path: Path, *, title: str = "") -> Path:
    """Write the picture of a front as PNG and return its path."""
    figure = new_figure(7.2, 4.4)
    axes = figure.add_subplot()
    low = min((point.x for point in (*data.front, *data.others)), default=0.0)
    margin = 0.03 * (data.x_limit - min(low, 0.0))
    axes.set_xlim(min(low, 0.0) - margin, data.x_limit + margin)
    shown = [point for point in data.others if point.x <= data.x_limit]
    axes.scatter(*_columns(shown), s=22, color=PLAIN, linewidths=0, label="other trials")
    xs, ys = _columns(data.front)
    axes.plot(xs, ys, drawstyle="steps-post", color=FRONT, alpha=0.45, linewidth=1.4, zorder=3)
    axes.scatter(xs, ys, s=34, color=FRONT, linewidths=0, zorder=4, label="front")
    if data.original is not None:
        _mark_original(axes, data.original)
    if data.chosen is not None:
        _mark_chosen(axes, data.chosen)
    _dress(axes, data, title)
    _name_points(axes, data)
    # The legend goes below the axes, where it covers no trial.
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return save_figure(figure, path)


def _point(number: int, scores: Sequence[Score], x_name: str, y_name: str) -> Point:
    named = {score.name: score for score in scores}
    if x_name not in named or y_name not in named:
        raise HereticError(
            f"Trial {number} lacks the score {x_name!r} or {y_name!r}, which other trials have.",
            remedy="Draw only trials with the same scores.",
        )
    x, y = named[x_name], named[y_name]
    label = f"{words_of(y_name)} {y.display}, {words_of(x_name)} {x.display}"
    return Point(number, x.value, y.value, label)


def _limit(on_front: Sequence[Point], chosen: Point | None, points: Iterable[Point]) -> float:
    """Right end of the axis: 1.5 times the end of the front, at most the furthest trial.

    It is 1 where all trials lie at 0, because an axis needs a width.
    """
    end = max(point.x for point in on_front)
    if chosen is not None:
        end = max(end, chosen.x)
    furthest = max(point.x for point in points)
    if furthest <= 0:
        return 1.0
    return furthest if end <= 0 else min(furthest, 1.5 * end)


def _columns(points: Iterable[Point]) -> tuple[list[float], list[float]]:
    listed = list(points)
    return [point.x for point in listed], [point.y for point in listed]


def _name_points(axes: Axes, data: FrontData) -> None:
    """Write names beside the front's trials, none upon another."""
    points = [point for point in data.front if point.trial in data.names]
    scale = 72 / axes.figure.dpi  # to points, in which texts are measured
    places = axes.transData.transform([(point.x, point.y) for point in points] or [(0, 0)]) * scale
    top, height = axes.bbox.y1 * scale, axes.bbox.height * scale
    named = [
        Named(x, top - y, CELL_WIDTH * len(data.names[point.trial]))
        for point, (x, y) in zip(points, places, strict=False)
    ]
    for point, lift in zip(points, lifts(named, LINE_HEIGHT, height), strict=True):
        at_edge = point.x > NEAR_EDGE * data.x_limit
        _name(axes, point, data.names[point.trial], "right" if at_edge else "left", -lift)


def _name(
    axes: Axes, point: Point, name: str, align: Literal["left", "right"], above: float
) -> None:
    """Write a trial's name on the side where the front is not."""
    axes.annotate(
        name,
        (point.x, point.y),
        xytext=(5, above),
        ha=align,
        textcoords="offset points",
        fontsize=8,
        color=FRONT,
        zorder=7,
    )


def _mark_original(axes: Axes, original: Point) -> None:
    axes.scatter(
        [original.x],
        [original.y],
        s=52,
        marker="D",
        facecolors="white",
        edgecolors=ORIGINAL,
        linewidths=1.4,
        zorder=5,
        label="original model",
        clip_on=False,
    )


def _mark_chosen(axes: Axes, chosen: Point) -> None:
    """Draw a ring; its explanation is in the legend, where it covers no other trial."""
    axes.scatter(
        [chosen.x],
        [chosen.y],
        s=110,
        facecolors="none",
        edgecolors=CHOSEN,
        linewidths=1.8,
        zorder=6,
        label=f"chosen: trial {chosen.trial}, {chosen.label}",
        clip_on=False,
    )


def _dress(axes: Axes, data: FrontData, title: str) -> None:
    axes.set_xlabel(AXIS_LABELS.get(data.x_name, words_of(data.x_name)))
    axes.set_ylabel(AXIS_LABELS.get(data.y_name, words_of(data.y_name)))
    if data.y_name == "refusals":
        axes.set_ylim(-0.04, 1.04)
        axes.yaxis.set_major_formatter(lambda value, _position: f"{value:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, loc="left", fontsize=11)
    if data.hidden:
        noun = "trial lies" if data.hidden == 1 else "trials lie"
        axes.text(
            1.0,
            0.99,
            f"{data.hidden} {noun} further to the right",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=8,
            color="#777777",
        )
