"""Research output of a run: geometry and pictures of residuals, a picture of the front."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from heretic.cli.display.geometry import geometry_tables
from heretic.config.tables import each_of
from heretic.events import StageFinished, StageProgress, StageStarted
from heretic.system.display import safe

if TYPE_CHECKING:
    from heretic.cli.display.reporter import Display
    from heretic.config.settings import Settings
    from heretic.pipeline.run import Session
    from heretic.records.trial import Trial
    from heretic.report.geometry import Residuals

FRONT_PICTURE = "front.png"


def check_research(settings: Settings) -> None:
    """Check before the work starts that residuals can be drawn.

    Raises:
        HereticError: A package that the settings need, or the plot style, is missing.
    """
    if not settings.plot_residuals:
        return
    from heretic.report.drawing import style
    from heretic.system.optional import require

    require("pacmap", extra="research", purpose="Plotting residuals")
    with style(settings.residual_plot_style):
        pass


def draw_run_front(session: Session, chosen: Trial | None = None) -> Path:
    """Draw all trials of a run and its front into the run folder; returns the picture's path.

    Raises:
        HereticError: There is nothing to draw.
    """
    from heretic.report.front import draw_front, front_data

    trials = session.study.trials
    data = front_data(
        trials,
        baseline=session.evaluator.baseline,
        chosen=None if chosen is None else chosen.number,
    )
    complete = sum(trial.state == "complete" for trial in trials)
    name = Path(session.settings.model).name
    path = session.folder.path / FRONT_PICTURE
    return draw_front(data, path, title=f"{name}, {complete} trials")


def _labels_and_colors(session: Session) -> dict[str, str]:
    """Labels and colours that the prompt sets bring along; those left out have defaults."""
    settings = session.settings
    good, bad = (each_of(sets)[0] for sets in (settings.good_prompts, settings.bad_prompts))
    given = {
        "good_label": good.residual_plot_label,
        "bad_label": bad.residual_plot_label,
        "good_color": good.residual_plot_color,
        "bad_color": bad.residual_plot_color,
    }
    return {name: value for name, value in given.items() if value}


def show_residuals(session: Session, display: Display) -> None:
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

        table = geometry_tables(residual_geometry(good, bad))
        display.close()
        display.console.print(table)
    if settings.plot_residuals:
        _draw_projections(session, good, bad, display)


def _draw_projections(session: Session, good: Residuals, bad: Residuals, display: Display) -> None:
    """Draw residuals [prompts, layers + 1, hidden size], a picture a layer and an animation."""
    from heretic.report.projection import Appearance, draw_animation, draw_projections, project

    settings = session.settings

    def stage(title: str, unit: str) -> Callable[[int, int], None]:
        display.emit(StageStarted(title))
        return lambda done, total: display.emit(StageProgress(done, total, unit))

    progress = stage("Projecting residuals", "layers")
    projections = project(good, bad, seed=session.manifest.seed, progress=progress)
    display.emit(StageFinished())
    folder = settings.residual_plot_path
    look = Appearance(
        title=settings.residual_plot_title,
        style=settings.residual_plot_style,
        **_labels_and_colors(session),
    )
    progress = stage("Drawing residuals", "pictures")
    draw_projections(projections, folder, look, progress)
    display.emit(StageFinished())
    progress = stage("Animating residuals", "pictures")
    draw_animation(projections, folder / "layers.gif", look, progress)
    display.emit(StageFinished(f"pictures in {folder}"))
    display.close()
    told = f"Residual plots are in {folder}."
    display.console.print(Text(safe(told)), soft_wrap=True)
