"""Tables of residual geometry: cosines, norms and silhouettes, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from heretic.report.geometry import LayerGeometry

LEGEND = (
    "g, b: means of good and bad residuals; G, B: geometric medians; r = b - g, R = B - G; "
    "r': r of the layer before. Silhouette: 1 far apart, 0 mixed. Probe: share of unseen prompts "
    "that a linear probe tells apart, 0.5 is chance."
)

_Column = tuple[str, Callable[[LayerGeometry], float], Callable[[float], str]]
"""Name, value, and how it is written."""


def _share(value: float) -> str:
    return f"{value:.3f}"


def _norm(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:#.4g}"


_COSINES: tuple[_Column, ...] = (
    ("g,b", lambda row: row.cos_means, _share),
    ("G,B", lambda row: row.cos_medians, _share),
    ("g,r", lambda row: row.cos_good_direction, _share),
    ("G,R", lambda row: row.cos_good_direction_medians, _share),
    ("b,r", lambda row: row.cos_bad_direction, _share),
    ("B,R", lambda row: row.cos_bad_direction_medians, _share),
    ("r,R", lambda row: row.cos_directions, _share),
    ("r,r'", lambda row: row.cos_previous, _share),
)
_SIZES: tuple[_Column, ...] = (
    ("|g|", lambda row: row.norm_good, _norm),
    ("|G|", lambda row: row.norm_good_median, _norm),
    ("|b|", lambda row: row.norm_bad, _norm),
    ("|B|", lambda row: row.norm_bad_median, _norm),
    ("|r|", lambda row: row.norm_direction, _norm),
    ("|R|", lambda row: row.norm_direction_median, _norm),
    ("silhouette", lambda row: row.silhouette, _share),
    ("probe", lambda row: row.probe, _share),
)
_UNBOUNDED = 10_000
"""Columns of a terminal that cuts nothing."""


def geometry_tables(rows: Sequence[LayerGeometry]) -> Group:
    """Tables with a row per layer: cosines, then norms and separation."""
    return Group(
        _Figures("Residual geometry: cosines", _COSINES, rows),
        _Figures("Residual geometry: norms and separation", _SIZES, rows),
        Text(LEGEND, style="italic dim"),
    )


@dataclass(frozen=True, slots=True)
class _Figures:
    """A row per layer. What has no room beside the rest stands in another table below it."""

    heading: str
    columns: Sequence[_Column]
    rows: Sequence[LayerGeometry]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        free = options.update(width=_UNBOUNDED)
        heading, left = self.heading, list(self.columns)
        while left:
            count = len(left)
            while count > 1:
                width = console.measure(self._table(heading, left[:count]), options=free).maximum
                if width <= options.max_width:
                    break
                count -= 1
            yield self._table(heading, left[:count])
            heading, left = "", left[count:]

    def _table(self, heading: str, columns: Sequence[_Column]) -> Table:
        title = Text(heading, style="bold") if heading else None
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        table.add_column("layer", justify="right", no_wrap=True)
        for name, _, _ in columns:
            table.add_column(Text(name), justify="right", no_wrap=True)
        for row in self.rows:
            cells = [_figure(value(row), written) for _, value, written in columns]
            table.add_row(str(row.layer), *cells)
        return table


def _figure(value: float, written: Callable[[float], str]) -> str:
    return "-" if math.isnan(value) else written(value)
