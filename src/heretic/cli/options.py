"""Command line options, made from the fields of the settings, and their help."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from heretic.config.behaviors import documented
from heretic.config.fields import GROUPS, SettingsFields
from heretic.config.tables import DatasetSpecification
from heretic.errors import SettingsError

if TYPE_CHECKING:
    from heretic.config.settings import Settings

_PREFIX = "setting__"
_CONFIG = "settings_file"
_SCORER = re.compile(r"--scorer\.(?P<path>[^=]+)(?:=(?P<value>.*))?", re.DOTALL)


@dataclass(frozen=True)
class SettingsOptions:
    """What the command line says about settings.

    Attributes:
        overrides: Settings by name, nested as in TOML.
        config: The file named by `--config`.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    config: Path | None = None

    def load(self, *, require_model: bool = True, **named: Any) -> Settings:
        """The settings of this command.

        Args:
            require_model: Whether the command cannot do without a model.
            **named: Settings that the command line gives in other ways (such as the model as
                an argument); None leaves a setting to the other sources.

        Raises:
            SettingsError: As `heretic.config.load_settings`.
        """
        from heretic.config.settings import load_settings

        given = {name: value for name, value in named.items() if value is not None}
        return load_settings({**self.overrides, **given}, self.config, require_model=require_model)

    def refuse_config(self, command: str, reason: str) -> None:
        """For commands that take their settings from elsewhere.

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
        show_settings: Whether its help lists the settings, or says where they are listed.
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
        """Parse, with `--scorer.NAME.OPTION VALUE` as one pair."""
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
            formatter.write_dl(own)
        if self.show_settings:
            write_settings(formatter)
        else:
            formatter.write_paragraph()
            formatter.write_text(
                "Every setting is an option here as well: `heretic --help` lists them."
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
                _put(overrides, tuple(name.removeprefix(_PREFIX).split("__")), value)
        options = SettingsOptions(overrides=_with_scorers(overrides), config=config)
        return function(*args, options=options, **values)

    decorated: Callable[..., Any] = wrapper
    for add in reversed(list(_decorators())):
        decorated = add(decorated)
    return decorated


def write_settings(formatter: click.HelpFormatter) -> None:
    """Write a help section for every group of settings; the data sets share one list."""
    for group in GROUPS:
        rows = [
            (_record(name), _meaning(info))
            for name, info in SettingsFields.model_fields.items()
            if _group(info) == group and not _is_table(info)
        ]
        if group == "Scorers":
            rows.append(("--scorer.NAME.OPTION VALUE", "An option of a single scorer."))
        if rows:
            with formatter.section(f"{group} settings"):
                formatter.write_dl(rows)
        else:
            _write_prompt_settings(formatter)
    with formatter.section("Behaviors, for --behavior"):
        formatter.write_dl(list(documented()))


def nearest_option(name: str, command: click.Command, ctx: click.Context) -> str:
    """The known option that is spelled most like `name`."""
    known = [
        option
        for parameter in command.get_params(ctx)
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    ]
    return difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.0)[0]


def option_name(path: tuple[str, ...]) -> str:
    """The option that sets the setting at `path`: `--good-prompts.split`."""
    return "--" + ".".join(path).replace("_", "-")


def _write_prompt_settings(formatter: click.HelpFormatter) -> None:
    sets = [
        (option_name((name,)).removeprefix("--"), _meaning(info))
        for name, info in SettingsFields.model_fields.items()
        if _is_table(info)
    ]
    with formatter.section("Prompts settings, where SET is one of"):
        formatter.write_dl(sets)
    rows = [
        (f"--SET.{_record(name).removeprefix('--')}", _meaning(info))
        for name, info in DatasetSpecification.model_fields.items()
    ]
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
    for name, info in SettingsFields.model_fields.items():
        if _is_table(info):
            for inner, inner_info in DatasetSpecification.model_fields.items():
                yield _option((name, inner), inner_info)
        else:
            yield _option((name,), info)
    yield click.option("--scorer-option", f"{_PREFIX}scorer_options", multiple=True, hidden=True)


def _option(
    path: tuple[str, ...], info: FieldInfo
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option of one setting; values stay text here, the settings validate them."""
    name = option_name(path)
    parameter = _PREFIX + "__".join(path)
    if _kind(info) is bool:
        return click.option(f"{name}/--no-{name[2:]}", parameter, default=None)
    return click.option(name, parameter, multiple=_is_list(info), default=None)


def _join_scorer_options(args: list[str]) -> Iterator[str]:
    """`--scorer.refusals.markers X` as `--scorer-option=refusals.markers=X`.

    Options of scorers are not known in advance, as anyone can write a scorer.
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
    """Lists given as repeated options or JSON, and options of scorers, in their final form."""
    from heretic.config.sources import decoded

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
        table = json.loads(text)
    except json.JSONDecodeError:
        table = None
    if not isinstance(table, dict):
        raise SettingsError(
            "Setting --scorer on the command line is no JSON table.",
            remedy='For example, {"refusals": {...}}; or use --scorer.NAME.OPTION VALUE.',
        )
    return table


def _elements(text: str) -> list[Any]:
    """The elements that one use of a list option adds."""
    for opening, wrap in (("[", False), ("{", True)):
        if text.lstrip().startswith(opening):
            try:
                parsed = json.loads(text)
            except json.JSONDecodeError:
                break
            return [parsed] if wrap else list(parsed)
    return [text] if text else []


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _group(info: FieldInfo) -> str:
    extra = info.json_schema_extra
    assert isinstance(extra, dict)
    return str(extra["group"])


def _is_table(info: FieldInfo) -> bool:
    kind = _kind(info)
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _kind(info: FieldInfo) -> Any:
    """The type of a setting, without None."""
    kinds = [kind for kind in get_args(info.annotation) if kind is not NoneType]
    optional = NoneType in get_args(info.annotation)
    return kinds[0] if optional and kinds else info.annotation


def _is_list(info: FieldInfo) -> bool:
    return get_origin(_kind(info)) is tuple


def _record(name: str) -> str:
    """The left column of a setting's help."""
    info = {**DatasetSpecification.model_fields, **SettingsFields.model_fields}[name]
    option = option_name((name,))
    kind = _kind(info)
    if kind is bool:
        return f"--[no-]{option[2:]}"
    if get_origin(kind) is Literal:
        return f"{option} [{'|'.join(map(str, get_args(kind)))}]"
    if _is_list(info):
        return f"{option} {'JSON' if name == 'scorers' else 'TEXT'} ..."
    if get_origin(kind) is dict:
        return f"{option} JSON"
    metavars = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
    return f"{option} {metavars.get(kind, 'TEXT')}"


def _meaning(info: FieldInfo) -> str:
    """The right column: what it means, and its default where that is short."""
    default = info.get_default()
    text = info.description or ""
    if default is None or default == "" or info.is_required() or isinstance(default, BaseModel):
        return text
    if isinstance(default, dict | tuple):
        words = all(isinstance(element, str) for element in default) and len(default) < 6
        return f"{text} [default: {', '.join(default)}]" if words and default else text
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f"{text} [default: {shown}]"
