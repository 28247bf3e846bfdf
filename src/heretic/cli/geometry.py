"""The table of residual geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from heretic.report.geometry import LayerGeometry

LEGEND = (
    "g, b: means of good and bad residuals; G, B: geometric medians; r = b - g, R = B - G; "
    "r': r of the layer before. Silhouette: 1 far apart, 0 mixed."
)

_COLUMNS: tuple[tuple[str, Callable[[LayerGeometry], float], int], ...] = (
    ("cos(g,b)", lambda row: row.cos_means, 3),
    ("cos(G,B)", lambda row: row.cos_medians, 3),
    ("cos(g,r)", lambda row: row.cos_good_direction, 3),
    ("cos(G,R)", lambda row: row.cos_good_direction_medians, 3),
    ("cos(b,r)", lambda row: row.cos_bad_direction, 3),
    ("cos(B,R)", lambda row: row.cos_bad_direction_medians, 3),
    ("cos(r,R)", lambda row: row.cos_directions, 3),
    ("cos(r,r')", lambda row: row.cos_previous, 3),
    ("|g|", lambda row: row.norm_good, 2),
    ("|G|", lambda row: row.norm_good_median, 2),
    ("|b|", lambda row: row.norm_bad, 2),
    ("|B|", lambda row: row.norm_bad_median, 2),
    ("|r|", lambda row: row.norm_direction, 2),
    ("|R|", lambda row: row.norm_direction_median, 2),
    ("silhouette", lambda row: row.silhouette, 3),
)


def geometry_table(rows: Sequence[LayerGeometry]) -> Table:
    """One row per layer, one column per figure; the legend is the caption."""
    table = Table(
        title=Text("Residual geometry", style="bold"),
        title_justify="left",
        caption=Text(LEGEND),
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 0),
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("layer", justify="right", no_wrap=True)
    for name, _, _ in _COLUMNS:
        table.add_column(Text(name), justify="right")
    for row in rows:
        cells = [_figure(value(row), digits) for _, value, digits in _COLUMNS]
        table.add_row(str(row.layer), *cells)
    return table


def _figure(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
