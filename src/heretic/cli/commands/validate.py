"""`heretic validate RUN`: what does a trial's edit carry?"""

from __future__ import annotations

import json
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options
from heretic.cli.signals import outlives_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

    from heretic.pipeline.validate import Validation


@click.command("validate", cls=SettingsCommand)
@click.argument("run")
@click.option(
    "--draws",
    default=3,
    type=click.IntRange(1, 100),
    show_default=True,
    help="Random draws of each control that is drawn.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print scores as JSON; progress goes to standard error."
)
@click.option(
    "--trust-plugins",
    is_flag=True,
    help="Load the scorers from outside Heretic that the run names: their code is run.",
)
@settings_options
@outlives_terminal()
def command(
    run: str, draws: int, as_json: bool, trust_plugins: bool, options: SettingsOptions
) -> int:
    """Score a trial of RUN beside controls, and say what its direction carries.

    RUN is a run folder, or its number in `heretic runs`. The trial's plan is scored with directions
    of shuffled labels, with random ones, and with those of --topic-prompts.dataset: prompts about
    the same topic that do not trigger the behaviour. --trial-index chooses the row of the front by
    number or name (knee by default). Figures are kept in the run folder.
    """
    started = perf_counter()
    path = options.searched_run(run)
    from rich.console import Console

    from heretic.cli import INTERRUPTED
    from heretic.cli.display.text import make_console
    from heretic.cli.opening import prepared, reopened_run, trial_of
    from heretic.pipeline.validate import load_topic, validate

    screen = Console(stderr=True) if as_json else make_console()
    with reopened_run(path, options, screen, started, trust_plugins=trust_plugins) as opened:
        # Before the model loads, so that mistakes are reported early.
        trial = trial_of(opened.run.folder, opened.settings, screen, default="knee")
        topic = load_topic(opened.settings)
        try:
            found = validate(prepared(opened), trial, topic, draws=draws)
        except KeyboardInterrupt:
            opened.display.close()
            screen.print("Stopped. Finished controls are kept: the same command scores the rest.")
            return INTERRUPTED
        opened.display.close()
    if as_json:
        click.echo(json.dumps(as_data(found), indent=2))
    else:
        make_console().print(shown(found))
    return 0


def as_data(found: Validation) -> dict[str, Any]:
    """A validation for programs."""
    from heretic.cli.commands.evaluate import scores_json

    return {
        "trial": found.trial.number,
        "baseline": scores_json(found.baseline),
        "controls": [
            {
                "kind": control.kind,
                "draw": control.draw,
                "scores": scores_json(control.scores),
                "shows": control.shows,
            }
            for control in found.controls
        ],
        "left_out": list(found.left_out),
        "conclusion": found.conclusion,
    }


def shown(found: Validation) -> RenderableType:
    """A validation for people: a table, and one sentence."""
    from rich.console import Group
    from rich.text import Text

    from heretic.cli.display.tables import scores_table
    from heretic.system.display import safe

    rows = {"original": found.baseline} | {
        control.title: control.scores for control in found.controls
    }
    lines = [f"Not made: {reason}." for reason in found.left_out]
    heading = f"Trial {found.trial.number} and its controls"
    return Group(
        scores_table(rows, label="vectors", heading=heading),
        *(Text(safe(line), style="dim") for line in lines),
        "",
        Text(safe(found.conclusion)),
    )
