"""`heretic gguf FOLDER`: convert, quantise and score a saved model with llama.cpp."""

from __future__ import annotations

from pathlib import Path

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, check_saved, settings_options
from heretic.cli.signals import outlives_terminal
from heretic.errors import ExportError
from heretic.system.models import check_model_named

DEFAULT_TYPES = "q8_0,q4_k_m"


@click.command("gguf", cls=SettingsCommand)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--types",
    metavar="TYPES",
    default=DEFAULT_TYPES,
    show_default=True,
    help="llama.cpp's types of files, with commas: f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, ...",
)
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where the files are put. Default: FOLDER-gguf, beside FOLDER.",
)
@click.option(
    "--against",
    metavar="MODEL",
    help="The original, for KL divergence: folder or Hub id. Default: the one that FOLDER's "
    "reproduce.json names, if it is found.",
)
@click.option("--against-commit", metavar="COMMIT", help="Its branch, tag or commit on the Hub.")
@click.option("--keep-original", is_flag=True, help="Keep the original's GGUF files too.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON; progress goes to standard error."
)
@settings_options
@outlives_terminal()
def command(
    folder: Path,
    types: str,
    output: Path | None,
    against: str | None,
    against_commit: str | None,
    keep_original: bool,
    as_json: bool,
    options: SettingsOptions,
) -> int:
    """Make GGUF files of the model saved in FOLDER, and score each of them in llama.cpp.

    Prompts, lengths and original are those in FOLDER's reproduce.json; without one, those of the
    settings. Types with fewer bits than q6_k get an importance matrix from the good prompts. Of a
    LoRA adapter one file is made, which is scored on its unquantised base.
    """
    check_saved(folder)
    if not any(folder.glob("*.safetensors")):
        raise ExportError(
            f"{folder} holds no safetensors files.", remedy="Name the folder of a saved model."
        )
    from heretic.gguf.file_types import file_types

    kinds = file_types([types])
    if against is not None:
        check_model_named(against, against_commit)
    from rich.console import Console

    from heretic.cli.display.gguf import show
    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.display.text import make_console
    from heretic.pipeline.gguf import make_gguf
    from heretic.pipeline.gguf_adapter import make_gguf_adapter
    from heretic.pipeline.gguf_order import GGUFOrder
    from heretic.pipeline.gguf_source import beside, gguf_source
    from heretic.system.adapters import find_adapter
    from heretic.system.display import json_text

    destination = output or beside(folder)
    order = GGUFOrder(kinds, destination, keep_original)
    console = make_console()
    with make_reporter(Console(stderr=True) if as_json else console) as display:
        source = gguf_source(
            folder,
            lambda: options.load(model=str(folder)),
            options.overrides,
            display,
            against=against,
            against_commit=against_commit,
            places=demo_places(),
        )
        if find_adapter(str(folder)) is None:
            results = make_gguf(source, order, display)
        else:
            results = make_gguf_adapter(source, destination, display)
    if as_json:
        click.echo(json_text({"folder": str(destination), **results.to_dict()}, indent=2))
    else:
        show(results, destination, console)
    return 0


def demo_places() -> tuple[Path, ...]:
    """Where the demo keeps its prompts and its models, which its reproduction files name."""
    from heretic.demo.data import prompt_file
    from heretic.demo.packaged import cache_folder

    return prompt_file("topic_test").parent, cache_folder()
