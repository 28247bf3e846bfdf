"""`heretic benchmark RUN`: run benchmarks on a trial of a run and on the original model."""

from __future__ import annotations

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options
from heretic.cli.signals import outlives_terminal
from heretic.errors import SettingsError


@click.command("benchmark", cls=SettingsCommand)
@click.argument("run")
@settings_options
@outlives_terminal()
def command(run: str, options: SettingsOptions) -> int:
    """Run benchmarks on a trial of RUN and on the original model.

    RUN is a run folder, or its number in `heretic runs`.

    --benchmarks names a task of the lm-evaluation-harness; repeat it for several.
    --no-benchmark-original leaves the original model out. --trial-index chooses the row of the
    front by number or name (0 by default). Finished tasks are not run again.
    """
    from heretic.runs.folder import known_run

    folder, manifest = known_run(options.run_path(run))  # before what takes seconds to import
    from heretic import pipeline
    from heretic.cli import INTERRUPTED
    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.display.text import make_console
    from heretic.cli.menu.benchmarks import benchmarked, wanted_of
    from heretic.cli.opening import locked, trial_of
    from heretic.harness.tasks import check_tasks
    from heretic.pipeline.recorded import run_settings

    settings = run_settings(manifest, options.layers())
    if not settings.benchmarks:
        raise SettingsError(
            "No benchmarks are named.", remedy="Name one, such as --benchmarks mmlu."
        )
    check_tasks(settings.benchmarks, settings.benchmark_path)
    console = make_console()
    trial = trial_of(folder, settings, console)
    wanted = wanted_of(settings, settings.benchmarks, settings.benchmark_original is not False)
    with make_reporter(console) as screen, locked(folder, screen) as display:
        model, directions = pipeline.load_run(settings, folder, manifest, display)
        try:
            benchmarked(model, directions, trial, wanted, folder.path, display)
        except KeyboardInterrupt:
            display.close()
            display.console.print(
                "Stopped. Finished tasks are kept: the same command runs the rest."
            )
            return INTERRUPTED
    return 0
