"""Figures without global state: no pyplot, no window, no change of matplotlib's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from heretic.errors import HereticError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` by `height` inches that is drawn in memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically, and return its path; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    figure.savefig(unfinished, format="png")
    unfinished.replace(path)
    return path


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw in one of matplotlib's styles.

    Raises:
        HereticError: Matplotlib has no style of this name.
    """
    import matplotlib.style

    if name not in (*matplotlib.style.available, "default"):
        raise HereticError(
            f"Matplotlib has no style {name!r}.",
            remedy=f"Use one of: default, {', '.join(matplotlib.style.available)}.",
        )
    with matplotlib.style.context(name):
        yield
