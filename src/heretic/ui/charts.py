"""Options of ECharts for what `views` holds.

Keys are fixed here: the library carries out values whose keys begin with a colon as scripts. No
name from a run becomes a key. Tooltips are drawn as text, not as HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heretic.ui.views import ChartPoint, FrontChart, Line

BLUE, RED, GREEN, GREY = "#3b7fc4", "#d1495b", "#2b9674", "#8a919c"
SERIES = (BLUE, RED, GREEN, "#d9822b", "#8b6fc9", GREY)
ROLES = {"other trial": GREY, "front": BLUE, "chosen": RED, "original": GREEN}
SHAPES = {"other trial": "circle", "front": "circle", "chosen": "diamond", "original": "triangle"}
SIZES = {"other trial": 8, "front": 12, "chosen": 16, "original": 14}

TEXT = "Quasar.Dark.isActive ? '#d5d9e0' : '#3a3f47'"
GRID = "Quasar.Dark.isActive ? '#3d434d' : '#dfe2e7'"
"""Carried out in the browser, which knows its theme."""

MANY = 300
"""Points of a series from which they are drawn as one shape, which is faster."""

NUMBER = 2
"""Place of the trial's number in a point."""


def front_options(chart: FrontChart | None, selected: int | None) -> dict[str, Any]:
    """The picture of the front: a series for each role, the front's steps, and the selection.

    A point is [x, y, number, label].
    """
    points = chart.points if chart is not None else ()
    on_front = sorted(
        (one for one in points if one.role in ("front", "chosen")), key=lambda one: (one.x, -one.y)
    )
    chosen = [one for one in points if one.number == selected]
    return {
        "animation": False,
        "grid": {"left": 12, "right": 20, "top": 40, "bottom": 34, "containLabel": True},
        "legend": {"top": 0, "textStyle": {":color": TEXT}, "data": list(ROLES)},
        "tooltip": {
            "trigger": "item",
            "renderMode": "richText",
            ":formatter": "p => p.value[3] ?? ''",
        },
        "xAxis": _axis(chart.x_name if chart is not None else "", below=True),
        "yAxis": _axis(chart.y_name if chart is not None else "", below=False),
        "series": [
            _steps(on_front),
            *(_points(role, [one for one in points if one.role == role]) for role in ROLES),
            _ring(chosen),
        ],
    }


def _axis(name: str, *, below: bool) -> dict[str, Any]:
    return {
        "type": "value",
        "name": name,
        "nameLocation": "middle" if below else "end",
        "nameGap": 26 if below else 10,
        "nameTextStyle": {":color": TEXT, "align": "center" if below else "left"},
        "axisLabel": {":color": TEXT, "hideOverlap": True},
        "axisLine": {"lineStyle": {":color": GRID}},
        "splitLine": {"lineStyle": {":color": GRID}},
    }


def _steps(points: Sequence[ChartPoint]) -> dict[str, Any]:
    return {
        "type": "line",
        "name": "steps",
        "step": "end",
        "symbol": "none",
        "silent": True,
        "lineStyle": {"color": BLUE, "opacity": 0.6, "width": 2},
        "data": [[one.x, one.y] for one in points],
    }


def _points(role: str, points: Sequence[ChartPoint]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": role,
        "symbol": SHAPES[role],
        "symbolSize": SIZES[role],
        "itemStyle": {"color": ROLES[role]},
        "data": [[one.x, one.y, one.number, one.label] for one in points],
        "large": True,
        "largeThreshold": MANY,
    }


def _ring(points: Sequence[ChartPoint]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": "shown below",
        "silent": True,
        "symbol": "circle",
        "symbolSize": 24,
        "itemStyle": {"color": "transparent", ":borderColor": TEXT, "borderWidth": 2},
        "data": [[one.x, one.y] for one in points],
    }


def layers_options(lines: Sequence[Line], y_name: str) -> dict[str, Any]:
    """Figures over layers, a line for each component."""
    count = max((len(line.values) for line in lines), default=0)
    return {
        "animation": False,
        "color": list(SERIES),
        "grid": {"left": 12, "right": 20, "top": 44, "bottom": 34, "containLabel": True},
        "legend": {"top": 0, "type": "scroll", "textStyle": {":color": TEXT}},
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "xAxis": {
            **_axis("layer", below=True),
            "type": "category",
            "data": [str(layer) for layer in range(count)],
        },
        "yAxis": _axis(y_name, below=False),
        "series": [
            {
                "type": "line",
                "name": line.name,
                "symbolSize": 5,
                "data": list(line.values),
            }
            for line in lines
        ],
    }
