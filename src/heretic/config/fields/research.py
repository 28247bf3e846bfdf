"""The group Research of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from heretic.config.declaration import FieldGroup, FromHome, setting


class ResearchFields(FieldGroup):
    """Tables and plots of residuals."""

    keep_replies: bool = setting(
        True,
        "Research",
        "Keep prompts and whole replies of the proposed trials in the run's report.json, for "
        "`heretic report`. If false, the report has neither.",
        scores=False,
    )
    print_residual_geometry: bool = setting(
        False, "Research", "Print a table of the residuals' geometry, layer by layer.", scores=False
    )
    plot_residuals: bool = setting(
        False,
        "Research",
        "Plot PaCMAP projections of the residuals, layer by layer, and an animation. A layer of "
        "800 prompts takes one to two seconds.",
        scores=False,
    )
    residual_plot_path: Annotated[Path, FromHome] = setting(
        Path("plots"), "Research", "Folder for residual plots.", scores=False
    )
    residual_plot_title: str = setting(
        "PaCMAP projection of residuals", "Research", "Title of residual plots.", scores=False
    )
    residual_plot_style: str = setting(
        "dark_background", "Research", "Matplotlib style of residual plots.", scores=False
    )
