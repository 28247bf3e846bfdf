"""`heretic chat MODEL` or `heretic chat RUN --trial-index N`: chat with a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options
from heretic.errors import SettingsError

if TYPE_CHECKING:
    from rich.console import Console

LONGEST_NAME = 40
"""Characters of a served model's name before each of its replies."""


@click.command("chat", cls=SettingsCommand)
@click.argument("model")
@click.option("--served-model", metavar="NAME", help="Which model of the server at an address.")
@click.option(
    "--api-key-env",
    metavar="VARIABLE",
    help="Environment variable that holds the server's key. Default: no key is sent.",
)
@click.option(
    "--directions",
    is_flag=True,
    help="Add the run's directions to the layers' outputs, in place of a trial's edit.",
)
@settings_options
def command(
    model: str,
    served_model: str | None,
    api_key_env: str | None,
    directions: bool,
    options: SettingsOptions,
) -> int:
    """Chat with MODEL: a Hub id, a folder of a model or adapter, a GGUF file, a run, or a server.

    A run is given by its folder or by its number in `heretic runs`. Then --trial-index chooses the
    row of its front by number or name (0 by default), /compare shows the replies of the original
    model as well, and /strength scales the edit. With --directions, each layer's output gets its
    direction, as long as bad prompts lie from good ones along it, times the strength (0 at first;
    -0.2, say, holds the behaviour back). A GGUF file is run by llama.cpp if the extra `gguf` is
    installed.

    A server is given by its address, such as http://127.0.0.1:8000/v1. It must have an
    OpenAI-compatible API, as vLLM, llama-server, Ollama and LM Studio do. The whole chat is sent
    there. This needs the extra `judge`.
    """
    from heretic.cli.display.text import make_console
    from heretic.judges.served import is_address
    from heretic.runs.folder import RunFolder

    path = None if is_address(model) else options.run_path(model)
    run = path if path is not None and RunFolder(path).exists else None
    if directions:
        _check_directions(run, options)
    if run is None and "trial_index" in options.overrides:
        raise SettingsError(
            f"--trial-index chooses a trial of a run, and {model} is not a run.",
            remedy="`heretic runs` lists runs; or leave the option out.",
        )
    if is_address(model):
        _chat_with_server(model, served_model, api_key_env, options)
        return 0
    if served_model is not None or api_key_env is not None:
        raise SettingsError(
            "--served-model and --api-key-env are for the address of a server.",
            remedy="For example: heretic chat http://127.0.0.1:8000/v1",
        )
    if _runs_in_llama(model):
        _chat_with_file(Path(model), options, make_console())
    elif run is not None:
        _chat_with_run(run, options, make_console(), directions)
    else:
        _chat_with_model(model, options, make_console())
    return 0


def _check_directions(run: Path | None, options: SettingsOptions) -> None:
    """Whether `--directions` can be followed.

    Raises:
        SettingsError: There is no run to take them from, or a trial is asked for as well.
    """
    if run is None:
        raise SettingsError(
            "--directions is for a run: it adds the directions that the run measured.",
            remedy="For example: heretic chat 1 --directions",
        )
    if "trial_index" in options.overrides:
        raise SettingsError(
            "--directions and --trial-index exclude each other: "
            "a chat has a trial's edit or the run's directions."
        )


def _chat_with_run(path: Path, options: SettingsOptions, console: Console, steered: bool) -> None:
    from heretic import pipeline
    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.opening import trial_of
    from heretic.cli.workflow import converse, converse_steered
    from heretic.pipeline.recorded import run_settings
    from heretic.runs.folder import known_run
    from heretic.runs.steering import mean_differences

    folder, manifest = known_run(path)
    settings = run_settings(manifest, options.layers())
    if steered:
        vectors = mean_differences(folder)  # read first: it may be missing
        with make_reporter(console) as display:
            model, _ = pipeline.load_run(settings, folder, manifest, display)
        converse_steered(model, vectors, settings.system_prompt, console)
        return
    trial = trial_of(folder, settings, console)
    with make_reporter(console) as display:
        model, directions = pipeline.load_run(settings, folder, manifest, display)
    converse(model, directions, trial, settings.system_prompt, console)


def _chat_with_model(name: str, options: SettingsOptions, console: Console) -> None:
    """Chat with a model by its Hub id or folder; an adapter is loaded with its base model."""
    settings = options.load_models(model=name)
    from heretic import pipeline
    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.menu.chat import chat
    from heretic.export.documents.reproduction import found_in_export
    from heretic.runs.manifest import recorded_date

    with make_reporter(console) as display:
        model = pipeline.load_judged(settings, display)
    model.renderer.date = recorded_date(found_in_export(name)) or model.renderer.date
    chat(model.stream_reply, console=console, system=settings.system_prompt, name="model")


def _runs_in_llama(name: str) -> bool:
    """Whether this is a GGUF file, and llama.cpp is at hand."""
    from importlib.util import find_spec

    from heretic.gguf.bindings import PACKAGE

    return name.endswith(".gguf") and Path(name).is_file() and find_spec(PACKAGE) is not None


def _chat_with_file(path: Path, options: SettingsOptions, console: Console) -> None:
    settings = options.load_models(model=str(path))
    from heretic.cli.menu.chat import chat
    from heretic.gguf.llama import LlamaFile
    from heretic.gguf.talk import reply_of

    with LlamaFile(path) as file:
        chat(
            lambda messages: reply_of(file, messages),
            console=console,
            system=settings.system_prompt,
            name="model",
        )


def _chat_with_server(
    address: str, name: str | None, api_key_env: str | None, options: SettingsOptions
) -> None:
    from rich.text import Text

    from heretic.cli.display.text import make_console
    from heretic.cli.menu.chat import chat
    from heretic.judges.served import ServedModel, served
    from heretic.system.display import safe, safe_line

    settings = options.load(require_model=False)
    model = ServedModel(served(address, name or "", api_key_env or ""))
    console = make_console()
    console.print(Text(safe(model.sent()), style="dim"))
    name = safe_line(model.name)[:LONGEST_NAME]
    chat(model.reply, console=console, system=settings.system_prompt, name=name)
