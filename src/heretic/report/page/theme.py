"""How charts look on the page and in files: a light and a dark theme."""

from __future__ import annotations

from typing import Any

FONT = "system-ui, sans-serif"


def config(text: str, grid: str, background: str | None) -> dict[str, Any]:
    """The configuration of Vega-Lite for these colours.

    Args:
        background: None is transparent.
    """
    labels = {"labelColor": text, "titleColor": text, "labelFont": FONT, "titleFont": FONT}
    return {
        "background": background,
        "font": FONT,
        "axis": {
            **labels,
            "gridColor": grid,
            "domainColor": grid,
            "tickColor": grid,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 12,
        },
        "legend": {**labels, "labelFontSize": 12},
        "text": {"color": text, "font": FONT, "fontSize": 12},
        "view": {"stroke": grid},
    }


LIGHT = config("#3a3f47", "#dfe2e7", None)
DARK = config("#d5d9e0", "#3d434d", None)
"""Of the page, which has a background of its own."""

PICTURE = config("#3a3f47", "#dfe2e7", "white")
"""Of files."""
