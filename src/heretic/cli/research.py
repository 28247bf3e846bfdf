"""What a run shows beyond its front: geometry and pictures of residuals, the front as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from heretic.cli.geometry import geometry_table
from heretic.events import StageFinished, StageProgress, StageStarted

if TYPE_CHECKING:
    from heretic.cli.display import Display
    from heretic.pipeline import Session


def show_residuals(session: Session, console: Console, display: Display) -> None:
    """Print and draw what `print_residual_geometry` and `plot_residuals` ask for.

    Raises:
        HereticError: A package that this needs is not installed.
    """
    settings = session.settings
    if not (settings.print_residual_geometry or settings.plot_residuals):
        return
    display.emit(StageStarted("Residuals of every direction prompt"))
    good, bad = (
        session.model.get_residuals_batched(rows).numpy()
        for rows in (session.prompts.good, session.prompts.bad)
    )
    display.emit(StageFinished())
    if settings.print_residual_geometry:
        from heretic.report.geometry import residual_geometry

        table = geometry_table(residual_geometry(good, bad))
        display.close()
        console.print(table)
    if settings.plot_residuals:
        from heretic.report.projection import (
            Appearance,
            draw_animation,
            draw_projections,
            project,
        )

        display.emit(StageStarted("Projecting residuals", total=good.shape[1] - 1))
        seed = session.manifest.seed
        projections = project(
            good,
            bad,
            seed=seed,
            progress=lambda done, total: display.emit(StageProgress(done, total, "layers")),
        )
        folder = settings.residual_plot_path
        look = Appearance(
            title=settings.residual_plot_title,
            style=settings.residual_plot_style,
        )
        draw_projections(projections, folder, look)
        draw_animation(projections, folder / "layers.gif", look)
        display.emit(StageFinished(f"pictures in {folder}"))
        display.close()
        console.print(Text(f"Residual plots are in {folder}."), soft_wrap=True)
