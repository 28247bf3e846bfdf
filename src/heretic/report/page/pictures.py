"""Writes figures as PNG and SVG, without a browser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from heretic.report.page import theme
from heretic.report.page.charts import Figure
from heretic.report.page.html import spec_in_theme
from heretic.system.files import cannot_write, write_atomic

WIDTH = 640
SCALE = 2
"""Pixels of a PNG for each of the figure's."""


def write_pictures(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write each figure twice; returns the paths. The folder is made.

    Names of figures can hold those of scorers, so that only letters, digits, dots and dashes stay.

    Raises:
        HereticError: They cannot be written.
    """
    import vl_convert

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    paths = []
    for figure in figures:
        name = re.sub(r"[^\w.-]", "_", figure.name)
        spec = spec_in_theme(figure, theme.PICTURE, WIDTH)
        for ending, content in (
            ("svg", vl_convert.vegalite_to_svg(spec).encode()),
            ("png", vl_convert.vegalite_to_png(spec, scale=SCALE)),
        ):
            path = folder / f"{name}.{ending}"
            write_atomic(path, content)
            paths.append(path)
    return paths
