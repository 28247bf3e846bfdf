"""Names in charts: at axes, in several lines, and beside points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import altair as alt

from heretic.report.labels import Named, lifts

Row = Mapping[str, Any]

ROW_HEIGHT, ROW_LINE, ROW_CELLS = 22, 14, 30
"""Pixels of a row, and of each line of its name where there are several, of so many characters."""

LINES = "split(datum.value, '\\n')"

NARROW, CELL_WIDTH, LINE_HEIGHT = 300, 6, 13
"""Pixels: the width of a chart on a telephone, and those of names beside points."""

FEW_TICKS = 12
"""Whole numbers that are named one by one: of so few, the library would name halves too."""


def names_beside(base: alt.Chart, rows: Sequence[Row], limit: float, height: int) -> list[Any]:
    """Names beside points, none upon another; to the left of a point where the picture ends."""
    left = min(0.0, *(row["x"] for row in rows))
    top = max(max(row["y"], row.get("y_high", row["y"])) for row in rows)
    bottom = min(0.0, *(row["y"] for row in rows))
    across, down = (limit - left) or 1.0, (top - bottom) or 1.0
    named = sorted((row for row in rows if row["names"]), key=lambda row: row["x"])
    places = [
        Named(
            NARROW * (row["x"] - left) / across,
            height * (top - row["y"]) / down,
            CELL_WIDTH * len(row["names"]),
        )
        for row in named
    ]
    by_lift: dict[float, list[str]] = {}
    for row, lift in zip(named, lifts(places, LINE_HEIGHT, height), strict=True):
        by_lift.setdefault(lift, []).append(row["label"])
    end = f"(datum.x - {left}) / {across} * width + {CELL_WIDTH} * length(datum.names) + 8"
    # Both sides hold all names, and show some: a layer without a row is warned of in the browser.
    return [
        base.transform_filter(alt.FieldOneOfPredicate(field="label", oneOf=labels))
        .mark_text(align=align, dx=-7 if align == "right" else 7, dy=lift)
        .encode(
            text=alt.condition(
                f"{end} {'>' if align == 'right' else '<='} width", "names:N", alt.value("")
            )
        )
        for lift, labels in by_lift.items()
        for align in ("left", "right")
    ]


def whole_numbers(field: str, rows: Sequence[Row]) -> alt.Axis:
    """An axis that names whole numbers alone where its figures are such."""
    values = {row[field] for row in rows if field in row}
    if not all(isinstance(value, int) for value in values):
        return alt.Axis()
    if max(values) - min(values) > FEW_TICKS:
        return alt.Axis(tickMinStep=1)
    return alt.Axis(values=list(range(min(values), max(values) + 1)), format="d")


def in_lines(rows: Sequence[Row], field: str) -> tuple[list[Row], int]:
    """Rows with a field `lines`, their names in lines that fit beside a chart; and a row's height.

    A name that is cut is none: only its beginning is common.
    """
    shown: list[Row] = [
        {**row, "lines": "\n".join(wrap(str(row[field]), ROW_CELLS))} for row in rows
    ]
    lines = max((row["lines"].count("\n") + 1 for row in shown), default=1)
    return shown, max(ROW_HEIGHT, ROW_LINE * lines)


def rows_axis(order: Sequence[str]) -> alt.Y:
    """An axis of rows whose names are in the field `lines`."""
    return alt.Y(
        "lines:N", title=None, sort=list(order), axis=alt.Axis(labelExpr=LINES, labelLimit=220)
    )
