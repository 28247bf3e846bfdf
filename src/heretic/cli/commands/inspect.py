"""`heretic inspect MODEL`: layers, components and residual writers of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options

if TYPE_CHECKING:
    from rich.table import Table

    from heretic.config.settings import Settings
    from heretic.model.description import Description, WriterRow
    from heretic.pipeline.described import Device
    from heretic.search.need import Need


@click.command("inspect", cls=SettingsCommand)
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option(
    "--weights",
    is_flag=True,
    help="Load the weights and run the model once, to show writers that are not known by name and "
    "every norm after a writer.",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Say what a search needs on an accelerator with so much memory. Default: on this machine.",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Tokens of a prompt, template included, for which that is said.",
)
@settings_options
def command(
    model: str,
    as_json: bool,
    weights: bool,
    memory: float | None,
    prompt_tokens: int,
    options: SettingsOptions,
) -> int:
    """Show what would be edited in MODEL, and what memory a search needs.

    Only its configuration is read. With --weights the model is loaded as well, as for a search.
    """
    settings = options.load_models(model=model)
    from heretic.pipeline.described import Device

    device = Device.of(settings.dtypes[0], memory)
    return inspect(settings, device, prompt_tokens, as_json=as_json, weights=weights)


def inspect(
    settings: Settings,
    device: Device,
    prompt_tokens: int,
    *,
    as_json: bool,
    weights: bool = False,
) -> int:
    """Describe the model of the settings and print the result.

    Args:
        prompt_tokens: Of a prompt, for what memory is needed.
        as_json: Whether to print JSON in place of a table.
        weights: Whether to load the weights.
    """
    from rich.console import Console
    from rich.text import Text

    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.display.text import make_console
    from heretic.config.presets import applied
    from heretic.model.description import describe
    from heretic.model.loading import LoadingOptions, load
    from heretic.pipeline.described import need_of
    from heretic.records.options import options_of
    from heretic.system.display import safe

    source, loaded = options_of(LoadingOptions, settings), None
    if weights:
        with make_reporter(Console(stderr=True)) as display:
            loaded = load(source, display)
    found = describe(source, source.residual_writers, preset=applied(settings), loaded=loaded)
    need = need_of(found, settings, device, prompt_tokens)
    if as_json:
        click.echo(json.dumps(found.to_dict() | {"memory": need.to_dict()}, indent=2))
        return 0
    console = make_console()
    for line in _heading(found):
        console.print(Text(safe(line)))
    for line in _memory(need, device, prompt_tokens, settings.max_response_length):
        console.print(Text(safe(line)))
    console.print(_table(found.writers))
    console.print(Text("Left alone:"))
    for name, reason in found.left_out:
        console.print(Text(safe(f"  {name}: {reason}")), soft_wrap=True)
    for line in _limits(found):
        console.print(Text(safe(line)), soft_wrap=True)
    return 0


def _heading(found: Description) -> list[str]:
    layers = f"{found.n_layers} layers at {found.layers}"
    memory = f"{found.weight_bytes / 1e9:.2f} GB for the weights in half precision"
    cache = f"{found.cache_bytes_per_token / 1024:.0f} KiB of cache per token and row"
    if found.carried_bytes:
        cache += f", {found.carried_bytes / 1024:.0f} KiB of recurrent states per row"
    return [
        f"{found.model}: {found.class_name} ({found.model_type})",
        f"{layers}, residual stream {found.hidden_size} wide, {found.parameters:,} weights",
        f"Memory: {memory}, {cache}",
        *([] if found.quantisation is None else [found.quantisation]),
        *([] if found.preset is None else [found.preset.line()]),
    ]


def _memory(need: Need, device: Device, prompt: int, reply: int) -> list[str]:
    """What a search needs, and whether the device has it."""
    parts = {
        "weights": need.weights,
        "cache": need.cache,
        "states of the original": need.originals,
        "passes and the fit": need.working,
    }
    told = ", ".join(f"{name} {size / 1e9:.2g}" for name, size in parts.items())
    lines = [
        f"A search on {device.name} needs about {need.total / 1e9:.2g} GB: {told}.",
        f"It decodes {need.rows} replies together, of {reply} tokens to prompts of {prompt}.",
    ]
    if need.total > device.memory:
        lines.append(
            "That is more than there is. Set quantization to bnb_4bit, or max_memory to spread the "
            "model over devices."
        )
    return lines


def _limits(found: Description) -> list[str]:
    """What the table leaves open, or how it was checked."""
    if found.verified:
        lines = [
            "A forward pass has shown that no writer is missing: their sum is what each layer adds."
        ]
        if found.discovered:
            found_by_output = ", ".join(found.discovered)
            lines.append(f"Not known by name, but found by their outputs: {found_by_output}")
        return lines
    if any(row.norm is None for row in found.writers):
        known = "Without weights it is not known which norms follow the writers."
    else:
        known = "A norm after a writer is one that takes the writer's output directly."
    if found.weights_here:
        rest = "The weights are on this machine: --weights loads them and shows the rest."
    else:
        rest = "Loading the model shows the rest."
    return [
        f"{known} Writers that are not known by name are not listed. {rest}",
        "Loading ends with a forward pass that checks that no writer is missing.",
    ]


def _table(rows: Sequence[WriterRow]) -> Table:
    """One row for each kind of writer."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from heretic.cli.display.text import longest_word, text_cells

    table = Table(box=box.SIMPLE, collapse_padding=True, show_edge=False)
    for name in ("component\nwriter", "layers", "weight [out, in]", "norm after", "edited"):
        # Brackets are no markup.
        table.add_column(Text(name), overflow="fold", min_width=longest_word(name))
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        shape = f"{row.experts} x ({shape})" if row.experts else shape
        shape += ", stored transposed" if row.transposed else ""
        norm = "?" if row.norm is None else row.norm or "-"
        layers = ranges(row.layers)
        path = f"{row.component}\n{row.path}"
        table.add_row(*text_cells(path, layers, shape, norm, row.edit))
    return table


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as text: `0-3, 7`; evenly spaced ones as `3-27 by 4`."""
    steps = {after - before for before, after in pairwise(numbers)}
    if len(numbers) > 2 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}-{numbers[-1]} by {steps.pop()}"
    from heretic.cli.display.text import consecutive

    runs = consecutive(numbers)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
