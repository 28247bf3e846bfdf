"""Tables of residual geometry: cosines, norms and silhouettes, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from heretic.report.geometry import LayerGeometry

LEGEND = (
    "g, b: means of good and bad residuals; G, B: geometric medians; r = b - g, R = B - G; "
    "r': r of the layer before. Silhouette: 1 far apart, 0 mixed. Probe: share of unseen prompts "
    "that a linear probe tells apart, 0.5 is chance."
)

_Column = tuple[str, Callable[[LayerGeometry], float], int]

_COSINES: tuple[_Column, ...] = (
    ("g,b", lambda row: row.cos_means, 3),
    ("G,B", lambda row: row.cos_medians, 3),
    ("g,r", lambda row: row.cos_good_direction, 3),
    ("G,R", lambda row: row.cos_good_direction_medians, 3),
    ("b,r", lambda row: row.cos_bad_direction, 3),
    ("B,R", lambda row: row.cos_bad_direction_medians, 3),
    ("r,R", lambda row: row.cos_directions, 3),
    ("r,r'", lambda row: row.cos_previous, 3),
)
_SIZES: tuple[_Column, ...] = (
    ("|g|", lambda row: row.norm_good, 2),
    ("|G|", lambda row: row.norm_good_median, 2),
    ("|b|", lambda row: row.norm_bad, 2),
    ("|B|", lambda row: row.norm_bad_median, 2),
    ("|r|", lambda row: row.norm_direction, 2),
    ("|R|", lambda row: row.norm_direction_median, 2),
    ("silhouette", lambda row: row.silhouette, 3),
    ("probe", lambda row: row.probe, 3),
)


def geometry_tables(rows: Sequence[LayerGeometry]) -> Group:
    """Two tables with a row per layer that fit 80 columns: cosines, then norms and separation."""
    return Group(
        _table("Residual geometry: cosines", _COSINES, rows),
        _table("Residual geometry: norms and separation", _SIZES, rows),
        Text(LEGEND, style="italic dim"),
    )


def _table(heading: str, columns: Sequence[_Column], rows: Sequence[LayerGeometry]) -> Table:
    table = Table(title=Text(heading, style="bold"), title_justify="left", box=box.SIMPLE)
    table.add_column("layer", justify="right", no_wrap=True)
    for name, _, _ in columns:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for row in rows:
        cells = [_figure(value(row), digits) for _, value, digits in columns]
        table.add_row(str(row.layer), *cells)
    return table


def _figure(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
