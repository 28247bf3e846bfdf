"""`heretic apply MODEL PLAN`: edit and save a model without a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options
from heretic.cli.signals import outlives_terminal
from heretic.errors import SettingsError
from heretic.records.choices import DEFAULT_STRATEGY

if TYPE_CHECKING:
    from heretic.records.plan import Plan


@click.command("apply", cls=SettingsCommand)
@click.argument("model")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--index", default=None, type=int, help="Number of the plan, from 0, if PLAN holds several."
)
@click.option(
    "--run",
    "run_folder",
    type=click.Path(path_type=Path),
    help="Run folder whose directions are used. Default: PLAN's own folder if it holds directions; "
    "otherwise they are computed from the prompts.",
)
@settings_options
@outlives_terminal()
def command(
    model: str, plan: Path, index: int | None, run_folder: Path | None, options: SettingsOptions
) -> int:
    """Apply the plan in the file PLAN to MODEL, and save the edited model.

    PLAN holds a plan as JSON, or is front.json or abliteration_params.json. --save-directory says
    where to save, --export-strategy what to save (merge or adapter).
    """
    settings = options.load_models(model=model)
    chosen = _chosen_plan(plan, index)
    strategy = _whole_or_adapter(settings.export_strategy or DEFAULT_STRATEGY)
    from heretic.cli.display.next_steps import after_saving, next_steps
    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.display.tables import scores_table
    from heretic.cli.display.text import make_console
    from heretic.cli.menu.answers import default_directory
    from heretic.export.documents.reproduction import found_in_export
    from heretic.model.fits import read_fits
    from heretic.pipeline import single
    from heretic.runs.folder import RunFolder
    from heretic.runs.manifest import recorded_date

    fits = read_fits([chosen], plan.parent, *([] if run_folder is None else [run_folder]))
    if run_folder is None and RunFolder(plan.parent).has_directions:
        run_folder = plan.parent
    destination = settings.save_directory or default_directory(model)
    console = make_console()
    with make_reporter(console) as display:
        scores = single.apply_plan(
            settings,
            chosen,
            destination,
            strategy,
            display,
            fits=fits,
            run=None if run_folder is None else RunFolder(run_folder),
            date=recorded_date(found_in_export(str(plan.parent.absolute()))),
        )
    console.print(scores_table({"from disk": scores}, heading=f"Saved in {destination}", label=""))
    console.print()
    steps = after_saving(destination, model, whole=strategy == "merge")
    console.print(next_steps(steps), soft_wrap=True)
    return 0


def _whole_or_adapter(strategy: str) -> str:
    """A strategy that is not `gguf`.

    Raises:
        SettingsError: It is.
    """
    if strategy == "gguf":
        raise SettingsError(
            "`heretic apply` makes no GGUF files.",
            remedy="Save merged weights (--export-strategy merge), then `heretic gguf FOLDER`.",
        )
    return strategy


def _chosen_plan(path: Path, index: int | None) -> Plan:
    """The plan that `--index` names; the only one of the file where it is left out.

    Raises:
        SettingsError: There is no such plan, or the file holds several and none is named.
        RunError: The file cannot be read or holds no plan.
    """
    from heretic.runs.plans import read_plans

    plans = read_plans(path)
    if index is None and len(plans) > 1:
        raise SettingsError(
            f"{path} holds {len(plans)} plans.",
            remedy=f"Choose one: --index 0 to {len(plans) - 1}.",
        )
    if not 0 <= (index or 0) < len(plans):
        raise SettingsError(
            f"--index is {index}, but the plans in {path} are numbered 0 to {len(plans) - 1}.",
            remedy="Choose one of these.",
        )
    return plans[index or 0]
