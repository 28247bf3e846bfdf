"""The settings written out: `config.default.toml`, `heretic config`, and the reference page.

`python -m heretic.config.reference --write` renews both files in the repository, `--check` fails if
they are not what the settings say.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from heretic.config import behaviors
from heretic.config.fields import GROUPS, SettingsFields
from heretic.config.tables import DatasetSpecification, ScorerSpecification

if TYPE_CHECKING:
    from tomlkit import TOMLDocument
    from tomlkit.items import Item, Table

TOML_FILE = Path("config.default.toml")
PAGE_FILE = Path("docs") / "settings.md"

_WIDTH = 98
_PAIR = 2
_TOML_HEAD = """\
Every setting of Heretic with its default and its meaning; printed by `heretic config`.
Settings that are commented out are unset; the value shown is an example.
Copy what you want to change to config.toml, or name a file by --config FILE.
"""
_PAGE_HEAD = """\
# Settings

<!-- Written by `python -m heretic.config.reference --write`; edit src/heretic/config/fields.py. -->

A setting has one name and can be given in several places. The highest wins:

| place | how `good_prompts.split` is written there |
| --- | --- |
| arguments in a program | `Settings(good_prompts={"split": "train[:50]"})` |
| command line | `--good-prompts.split 'train[:50]'` |
| environment | `HERETIC_GOOD_PROMPTS__SPLIT='train[:50]'` |
| `.env` in the working directory | the same line |
| secrets folder | a file `heretic_good_prompts__split` in the folder `HERETIC_SECRETS_DIR` |
| `config.toml`, or `--config FILE` in its place | `split = "train[:50]"` under `[good_prompts]` |
| the ready configuration that `behavior` names | the same |
| the preset that fits the model | `good_prompts = { split = "train[:50]" }` in its table |

A key that is no setting is an error that names the nearest one, in every place; of variables that
counts for those which start with `HERETIC_`, others are not looked at. Tables can be given in part:
what is left out keeps its default. Lists are JSON in variables (`'["auto", "float32"]'`, or one
element as it is); on the command line the option can be repeated as well. Empty text unsets a
setting that may be unset. `heretic config` prints everything below as a TOML file.

Settings that say "Unset: ask" are questions: with a terminal they are asked, without one the front
is printed with the command that goes on from there.
"""

_PRESETS_HEAD = """
## Presets

`preset = "auto"` looks for the first of these that fits `config.json` and the model's name. Loading
and `heretic inspect` say which one it is and what it sets. Everything you set yourself, in whatever
place, stands above it; tables such as `chat_template_kwargs` are merged key by key. What a preset
has set is recorded with a run like any other setting, so that a run goes on as it began.

A file of your own, `preset = "mine.toml"`, has one table for each preset, with conditions
(`model_types`, `names`, `stored_dtypes`: lists of globs, each of which may be left out), `why`, and
settings. Its presets are tried first, in order, then those below; one applies. It cannot set
`model`, `model_commit`, `evaluate_model`, `trust_remote_code` and `preset`.

| preset | for | sets | why |
| --- | --- | --- | --- |
"""


_BEHAVIORS_HEAD = """
## Behaviors

`behavior` names one of these, or a folder or TOML file of your own ([how](behaviors.md)).

| behavior | what it is |
| --- | --- |
"""


def default_toml() -> str:
    """Every setting with default and meaning, as a TOML file that can be used as it is."""
    import tomlkit

    document = tomlkit.document()
    _comment(document, _TOML_HEAD)
    for group in GROUPS:
        # tables come last: in TOML, a plain key after a table would belong to it
        plain = [(name, info) for name, info in _fields(group) if not _is_tables(info)]
        if not plain:
            continue
        document.add(tomlkit.nl())
        _comment(document, _heading(group))
        for name, info in plain:
            document.add(tomlkit.nl())
            _comment(document, _meaning(info))
            _add(document, name, info.get_default(), _extra(info, "example"))
    _add_datasets(document)
    _add_scorers(document)
    return tomlkit.dumps(document)


def settings_page() -> str:
    """The reference page, in Markdown."""
    from heretic.config.presets import documented

    parts = [_PAGE_HEAD]
    for group in GROUPS:
        parts.append(
            f"\n## {group}\n\n| setting | type | default | meaning |\n| --- | --- | --- | --- |\n"
        )
        parts.extend(_row(name, info) for name, info in _fields(group))
        if group == "Prompts":
            parts.append(
                _inner_table("Every prompt set is a table with these keys:", DatasetSpecification)
            )
        if group == "Scorers":
            parts.append(
                _inner_table("Every element of `scorers` has these keys:", ScorerSpecification)
            )
            parts.append(
                "\nOptions of a scorer stand under `[scorer.NAME]`; on the command line, "
                "`--scorer.NAME.OPTION VALUE`.\n"
            )
    parts.append(_BEHAVIORS_HEAD)
    parts.extend(f"| `{name}` | {about} |\n" for name, about in behaviors.documented())
    parts.append(_PRESETS_HEAD)
    for name, models, settings, why in documented():
        cells = (f"`{name}`", models.replace("*", "\\*"), f"`{settings}`", why)
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def outdated(root: Path) -> list[Path]:
    """Files under `root` that are not what the settings say."""
    return [path for path, text in _files(root) if not path.is_file() or _read(path) != text]


def write(root: Path) -> None:
    """Write both files under `root`."""
    for path, text in _files(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def main() -> int:
    """Write or check the files in the working directory."""
    parser = argparse.ArgumentParser(prog="python -m heretic.config.reference", description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="write the files")
    mode.add_argument("--check", action="store_true", help="exit with 1 if they would change")
    arguments = parser.parse_args()
    root = Path.cwd()
    if arguments.write:
        write(root)
        return 0
    drifted = outdated(root)
    for path in drifted:
        sys.stderr.write(f"{path} is outdated: run python -m heretic.config.reference --write\n")
    return 1 if drifted else 0


def _files(root: Path) -> Iterator[tuple[Path, str]]:
    yield root / TOML_FILE, default_toml()
    yield root / PAGE_FILE, settings_page()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _fields(group: str) -> list[tuple[str, FieldInfo]]:
    return [
        (name, info)
        for name, info in SettingsFields.model_fields.items()
        if _extra(info, "group") == group
    ]


def _extra(info: FieldInfo, key: str) -> Any:
    extra = info.json_schema_extra
    return extra.get(key) if isinstance(extra, dict) else None


def _is_tables(info: FieldInfo) -> bool:
    """Whether TOML writes it as tables of its own."""
    default = info.get_default()
    return (
        isinstance(default, BaseModel)
        or (isinstance(default, dict) and _extra(info, "example") is None)
        or DatasetSpecification in get_args(info.annotation)  # a table that may be unset
        or (isinstance(default, tuple) and any(isinstance(e, BaseModel) for e in default))
    )


def _meaning(info: FieldInfo) -> str:
    return info.description or ""


def _heading(title: str) -> str:
    return f"== {title} =="


def _comment(container: TOMLDocument | Table, text: str) -> None:
    import tomlkit

    for paragraph in text.strip().splitlines():
        for line in textwrap.wrap(paragraph, _WIDTH - 2, break_on_hyphens=False):
            container.add(tomlkit.comment(line))


def _add(container: TOMLDocument | Table, name: str, default: Any, example: Any) -> None:
    """Add `name = default`, or a commented example where the default is unset."""
    import tomlkit

    if default not in (None, "") or example is None:
        container.add(name, _item(default))
    else:
        container.add(tomlkit.comment(f"{name} = {_item(example).as_string()}"))


def _item(value: Any) -> Item:
    """A TOML value; long lists one element a line."""
    import tomlkit

    if isinstance(value, dict):
        inline = tomlkit.inline_table()
        inline.update(value)
        return inline
    if isinstance(value, Path):
        return tomlkit.item(value.as_posix())
    if isinstance(value, tuple | list):
        array = tomlkit.array()
        for element in value:
            array.append(_item(element))
        # nested ones stay on one line: tomlkit would not indent them
        flat = bool(value) and isinstance(value[0], str) and len(value) == _PAIR
        array.multiline(multiline=not flat and len(array.as_string()) > _WIDTH // 2)
        return array
    item: Item = tomlkit.item(value)
    return item


def _add_datasets(document: TOMLDocument) -> None:
    import tomlkit

    document.add(tomlkit.nl())
    _comment(document, _heading("Prompts"))
    for position, (name, info) in enumerate(_fields("Prompts")):
        default = info.get_default()
        if default is None:
            document.add(tomlkit.nl())
            _comment(document, f"[{name}]\n{_meaning(info)}")
            for key, value in (_extra(info, "example") or {}).items():
                _add(document, key, None, value)
            continue
        table = tomlkit.table()
        _comment(table, _meaning(info))
        for key, key_info in DatasetSpecification.model_fields.items():
            if position == 0:  # the meaning of the keys is said once
                _comment(table, _meaning(key_info))
            value = getattr(default, key)
            _add(table, key, value, "" if value is None else None)
        document.add(name, table)


def _add_scorers(document: TOMLDocument) -> None:
    import tomlkit

    fields = SettingsFields.model_fields
    document.add(tomlkit.nl())
    _comment(document, _heading("Scorers, continued"))
    document.add(tomlkit.nl())
    _comment(document, _meaning(fields["scorers"]))
    for key, info in ScorerSpecification.model_fields.items():
        _comment(document, f"{key}: {_meaning(info)}")
    tables = tomlkit.aot()
    for scorer in fields["scorers"].get_default():
        table = tomlkit.table()
        for key, value in scorer.model_dump().items():
            table.add(key, value)
        tables.append(table)
    document.add("scorers", tables)
    document.add(tomlkit.nl())
    _comment(document, _meaning(fields["scorer"]))
    _comment(document, "[scorer.NAME]")


def _inner_table(sentence: str, model: type[BaseModel]) -> str:
    rows = "".join(_row(name, info) for name, info in model.model_fields.items())
    head = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
    return f"\n{sentence}\n\n{head}{rows}"


def _row(name: str, info: FieldInfo) -> str:
    cells = [f"`{name}`", _type_name(info.annotation), _default_cell(info), _meaning(info)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _type_name(annotation: Any) -> str:
    """The type of a setting in words."""
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    if NoneType in get_args(annotation):
        return _type_name(kinds[0])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in kinds)
    if get_origin(annotation) is tuple:
        return "list of pairs" if get_origin(kinds[0]) is tuple else f"list of {_plural(kinds[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if get_origin(annotation) is dict:
        return "table"
    names = {str: "text", int: "integer", float: "number", bool: "true, false", Path: "path"}
    return names.get(annotation, "text or table")


def _plural(kind: Any) -> str:
    return "tables" if _type_name(kind) == "table" else "texts"


def _default_cell(info: FieldInfo) -> str:
    default = info.get_default()
    if info.is_required():
        return "required"
    if default is None or (default == "" and _extra(info, "example")):
        return "unset"
    if isinstance(default, DatasetSpecification):
        return f"`{default.dataset}`, `{default.split}`"
    if isinstance(default, tuple):
        return _list_cell(default)
    if not isinstance(default, Mapping) and str(default):
        return f"`{str(default).lower() if isinstance(default, bool) else default}`"
    return "empty"


def _list_cell(default: tuple[Any, ...]) -> str:
    elements = [
        element.name
        if isinstance(element, ScorerSpecification)
        else " → ".join(element)
        if isinstance(element, tuple)
        else str(element)
        for element in default
    ]
    return ", ".join(f"`{element}`" for element in elements)


if __name__ == "__main__":
    sys.exit(main())
