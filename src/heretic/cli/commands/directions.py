"""`heretic directions RUN`: the directions of a run as a control vector for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options


@click.command("directions", cls=SettingsCommand)
@click.argument("run")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The GGUF file to write.",
)
@settings_options
def command(run: str, output: Path, options: SettingsOptions) -> int:
    """Write the directions of RUN as a control vector that llama.cpp adds to a model's layers.

    RUN is a run folder, or its number in `heretic runs`. At a scale of 1 each layer gets the mean
    difference from good to bad prompts: a positive scale brings the behaviour about, a negative one
    holds it back. Each layer passes on what was added before it, so that fractions of 1 are usual.
    A trial cannot be written so: what its edit changes depends on the layer's output.
    """
    from heretic.errors import SettingsError
    from heretic.gguf.control import write_control_vector
    from heretic.runs.folder import known_run
    from heretic.runs.steering import mean_differences
    from heretic.system.display import safe

    if "trial_index" in options.overrides:
        raise SettingsError(
            "A trial cannot be a control vector: its edit is no constant per layer, but depends on "
            "the layer's output.",
            remedy="Leave out --trial-index for the run's directions, or save the trial "
            "(heretic export).",
        )
    folder, manifest = known_run(options.run_path(run))
    vectors = mean_differences(folder)
    write_control_vector(output, vectors, Path(manifest.model).name)
    click.echo(safe(f"{output}: a control vector of layers 1 to {len(vectors) - 2}."))
    click.echo(safe(f"llama-cli -m MODEL.gguf --control-vector-scaled {output}:-0.2"))
    return 0
