"""Command line options, made from the settings, and their help."""

from __future__ import annotations

import difflib
import functools
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heretic.config.behaviors import documented
from heretic.config.declaration import GROUPS
from heretic.config.nested import decoded, put
from heretic.config.schema import Kind, SettingInfo, settings_of
from heretic.errors import ExportError, SettingsError
from heretic.system.display import safe
from heretic.system.documents import parse_json

if TYPE_CHECKING:
    from heretic.config.schema import SettingsLayer
    from heretic.config.settings import Settings

_PREFIX = "setting__"
_CONFIG = "settings_file"

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read settings from this TOML file instead of config.toml.",
)
"""Of commands that read settings and have none of them as options."""
_COMMON = (
    "behavior",
    "n_trials",
    "max_response_length",
    "system_prompt",
    "quantization",
    "checkpoint_action",
    "trial_index",
    "model_action",
    "save_directory",
    "export_strategy",
)
"""The settings that the short help shows."""

_SCORER = re.compile(r"--scorer\.(?P<path>[^=]+)(?:=(?P<value>.*))?", re.DOTALL)


@dataclass(frozen=True)
class SettingsOptions:
    """What the command line says about settings.

    Attributes:
        overrides: Settings by name, nested as in TOML.
        config: The file named by `--config`.
        said: The remarks that were printed.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    config: Path | None = None
    said: set[str] = field(default_factory=set, compare=False)

    def load(self, *, require_model: bool = True, **named: Any) -> Settings:
        """The settings of this command.

        Args:
            require_model: Whether the command needs a model.
            **named: Settings that the command line gives in other ways, such as the model as
                an argument; None stands for a setting that is not given.

        Raises:
            SettingsError: As `heretic.config.load_settings`.
        """
        from heretic.config.settings import load_settings

        given = {name: value for name, value in named.items() if value is not None}
        return load_settings(
            {**self.overrides, **given}, self.config, require_model=require_model, tell=self.tell
        )

    def load_models(self, **named: Any) -> Settings:
        """As `load`, for models that are there: asked before the imports that take seconds.

        Raises:
            SettingsError: As `load`.
            ModelError: A model is not there; see `heretic.system.models`.
        """
        from heretic.system.models import check_model_named

        settings = self.load(**named)
        if settings.evaluate_model:
            check_model_named(settings.evaluate_model)
        check_model_named(settings.model, settings.model_commit)
        return settings

    def layers(self) -> tuple[SettingsLayer, ...]:
        """What the user sets, the highest layer first; remarks on files are printed.

        Raises:
            SettingsError: As `heretic.config.sources.read_user_layers`.
        """
        from heretic.config.settings import remarks_on
        from heretic.config.sources import read_user_layers

        layers = read_user_layers(self.overrides, self.config)
        for remark in remarks_on(layers):
            self.tell(remark)
        return layers

    def tell(self, remark: str) -> None:
        """Print a remark on a file of settings to standard error, once."""
        if remark not in self.said:
            self.said.add(remark)
            click.echo(safe(remark), err=True)

    def run_path(self, named: str) -> Path:
        """The run folder that is named by its path, its name or its number (`heretic runs`).

        Raises:
            SettingsError: As `load`.
            RunError: There is no run of that number.
        """
        from heretic.runs.listing import path_of_run

        if Path(named).exists():
            return Path(named)
        return path_of_run(named, self.load(require_model=False).study_checkpoint_dir)

    def searched_run(self, named: str) -> Path:
        """As `run_path`, of a run whose manifest can be read.

        Commands ask this before they import what takes seconds.

        Raises:
            SettingsError: As `load`.
            RunError: There is no such run, or it is damaged.
        """
        from heretic.runs.folder import known_run

        folder, _ = known_run(self.run_path(named))
        return folder.path

    def refuse_config(self, command: str, reason: str) -> None:
        """Refuse `--config`, for commands that take their settings from elsewhere.

        Args:
            command: The command's name.
            reason: Why it takes no such file, for the error.

        Raises:
            SettingsError: `--config` was given.
        """
        if self.config is not None:
            raise SettingsError(
                f"`heretic {command}` takes no --config: {reason}.",
                remedy="Give single settings as options.",
            )


class SettingsCommand(click.Command):
    """A command that takes every setting as an option.

    Args:
        show_settings: Whether its help shows the settings that are most used.
    """

    def __init__(self, *args: Any, show_settings: bool = False, **options: Any) -> None:
        options.setdefault(
            "context_settings",
            {
                "help_option_names": ["-h", "--help"],
                "max_content_width": 100,
                "token_normalize_func": lambda token: token.replace("_", "-"),
            },
        )
        super().__init__(*args, **options)
        self.show_settings = show_settings

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join each `--scorer.NAME.OPTION VALUE` into one argument, then parse."""
        return super().parse_args(ctx, list(_join_scorer_options(args)))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the settings."""
        own = [
            record
            for parameter in self.get_params(ctx)
            if not (parameter.name or "").startswith(_PREFIX)
            and (record := parameter.get_help_record(ctx)) is not None
            and record[1]  # an argument without help is in the usage line already
        ]
        with formatter.section("Options"):
            formatter.write_dl([*(common_settings() if self.show_settings else ()), *own])
        formatter.write_paragraph()
        formatter.write_text(
            "Every setting is an option here as well: `heretic --help-all` lists them."
        )


def check_saved(folder: Path) -> None:
    """Check that a folder, which is to hold a saved model, is there; before slow imports.

    Raises:
        ExportError: It is not, or it is a run folder.
    """
    from heretic.runs.folder import RunFolder

    if RunFolder(folder).exists:
        raise ExportError(
            f"{folder} is a run folder, not a saved model.",
            remedy=f"Save one of its trials first: heretic export {shlex.quote(str(folder))}",
        )
    if not folder.is_dir():
        raise ExportError(
            f"{folder} is not a folder.",
            remedy="Name that of a saved model; `heretic export RUN` saves a trial of a run.",
        )


def settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for every setting, and `--config`, to a `SettingsCommand`.

    The function gets them as one argument, `options: SettingsOptions`.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **values: Any) -> Any:
        config = values.pop(_CONFIG, None)
        overrides: dict[str, Any] = {}
        for name in [name for name in values if name.startswith(_PREFIX)]:
            value = values.pop(name)
            if value is not None and value != ():
                put(overrides, tuple(name.removeprefix(_PREFIX).split("__")), value)
        options = SettingsOptions(overrides=_with_scorers(overrides), config=config)
        return function(*args, options=options, **values)

    decorated: Callable[..., Any] = wrapper
    for add in reversed(list(_decorators())):
        decorated = add(decorated)
    return decorated


def common_settings() -> list[tuple[str, str]]:
    """Option and meaning of the settings that are used most."""
    known = {setting.name: setting for setting in settings_of()}
    return [(_record(known[name]), _first(known[name].description)) for name in _COMMON]


def _first(text: str) -> str:
    """The first sentence, up to a semicolon."""
    return re.split(r"[.;](?:\s|$)", text, maxsplit=1)[0] + "."


def write_settings(formatter: click.HelpFormatter) -> None:
    """Write a help section for every group of settings; the data sets share one list."""
    for group in GROUPS:
        own = [setting for setting in settings_of() if setting.group == group]
        sets = [setting for setting in own if setting.kind == "table"]
        if sets:
            _write_prompt_settings(formatter, sets)
        rows = [(_record(one), _meaning(one)) for one in own if one.kind != "table"]
        if group == "Scorers":
            rows.append(("--scorer.NAME.OPTION VALUE", "An option of a single scorer."))
        if rows:
            with formatter.section(f"{group} settings"):
                formatter.write_dl(rows)
    with formatter.section("Behaviors, for --behavior"):
        formatter.write_dl(list(documented()))


def nearest_option(name: str, command: click.Command, ctx: click.Context) -> str | None:
    """The known option that is spelled most like `name`; None of a single letter."""
    if not name.startswith("--"):
        return None
    known = [
        option
        for parameter in command.get_params(ctx)
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    ]
    return difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.0)[0]


def _write_prompt_settings(formatter: click.HelpFormatter, sets: Sequence[SettingInfo]) -> None:
    with formatter.section("Prompts settings, where SET is one of"):
        formatter.write_dl([(found.option.removeprefix("--"), _meaning(found)) for found in sets])
    prefix = f"{sets[0].option}."
    rows = [(_record(key).replace(prefix, "--SET.", 1), _meaning(key)) for key in sets[0].keys]
    formatter.indent()
    formatter.write_paragraph()
    formatter.write_dl(rows)
    formatter.dedent()


def _decorators() -> Iterator[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    yield click.option(
        "--config",
        _CONFIG,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Read settings from this TOML file, in place of config.toml in the working directory.",
    )
    for setting in settings_of():
        for single in setting.keys if setting.kind == "table" else (setting,):
            yield _option(single)
    yield click.option("--scorer-option", f"{_PREFIX}scorer_options", multiple=True, hidden=True)


def _option(setting: SettingInfo) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option of one setting. Values stay text: `Settings` validates them."""
    parameter = _PREFIX + "__".join(setting.path)
    if setting.kind == "switch":
        return click.option(f"{setting.option}/{setting.option_off}", parameter, default=None)
    return click.option(setting.option, parameter, multiple=setting.is_list, default=None)


def _join_scorer_options(args: list[str]) -> Iterator[str]:
    """`--scorer.refusals.markers X` as `--scorer-option=refusals.markers=X`.

    click must know all options in advance, but anyone can write a scorer with options of its own.
    """
    rest = iter(args)
    for token in rest:
        match = _SCORER.fullmatch(token)
        if match is None:
            yield token
            if token == "--":  # noqa: S105 - what follows are arguments, not a password
                yield from rest
            continue
        value = match["value"] if match["value"] is not None else next(rest, None)
        if value is None:
            raise click.BadOptionUsage(token, f"Option {token!r} requires an argument.")
        yield f"--scorer-option={match['path']}={value}"


def _with_scorers(overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides with lists and with options of scorers in the form that `Settings` takes."""
    for name, value in overrides.items():
        if isinstance(value, tuple) and name != "scorer_options":
            elements = [part for text in value for part in _elements(text)]
            overrides[name] = elements
        elif name == "chat_template_kwargs":  # merged key by key with what lies below
            overrides[name] = decoded(value)
    pairs = overrides.pop("scorer_options", ())
    if not pairs and "scorer" not in overrides:
        return overrides
    tables = _json_table(overrides.get("scorer", "{}"))
    for pair in pairs:
        path, _, value = pair.partition("=")
        name, _, option = path.partition(".")
        if not option:
            raise SettingsError(
                f"Option --scorer.{path} on the command line names no option of the scorer.",
                remedy="It should be --scorer.NAME.OPTION VALUE.",
            )
        tables.setdefault(name, {})[option.replace("-", "_")] = decoded(value)
    overrides["scorer"] = tables
    return overrides


def _json_table(text: str) -> dict[str, Any]:
    try:
        table = parse_json(text)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise SettingsError(
            "Setting --scorer on the command line is not a JSON table.",
            remedy='For example, {"refusals": {...}}; or use --scorer.NAME.OPTION VALUE.',
        )
    return table


def _elements(text: str) -> list[Any]:
    """The elements that one use of a list option adds."""
    for opening, wrap in (("[", False), ("{", True)):
        if text.lstrip().startswith(opening):
            try:
                parsed = parse_json(text)
            except ValueError:
                break
            return [parsed] if wrap else list(parsed)
    return [text] if text else []


_METAVARS: Mapping[Kind, str] = {
    "integer": "INTEGER",
    "number": "NUMBER",
    "path": "PATH",
    "list of texts": "TEXT ...",
    "list of pairs": "TEXT ...",
    "list of tables": "JSON ...",
    "mapping": "JSON",
    "open table": "JSON",
}
"""What the help shows for a value; all else is TEXT."""


def _record(setting: SettingInfo) -> str:
    """The left column of a setting's help."""
    if setting.kind == "switch":
        return f"--[no-]{setting.option.removeprefix('--')}"
    if setting.kind == "choice":
        return f"{setting.option} [{'|'.join(setting.choices)}]"
    return f"{setting.option} {_METAVARS.get(setting.kind, 'TEXT')}"


def _meaning(setting: SettingInfo) -> str:
    """The right column: what it means, and its default where that is short."""
    default, text = setting.default, setting.description
    if default is None or default == "" or setting.kind == "table":
        return text
    if isinstance(default, dict | tuple):
        words = all(isinstance(element, str) for element in default) and len(default) < 6
        return f"{text} [default: {', '.join(default)}]" if words and default else text
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f"{text} [default: {shown}]"
