"""The settings written out: `config.default.toml`, `heretic config`, and the reference pages.

`python -m heretic.config.reference --write` renews the files in the repository; `--check` fails if
they differ from what it would write.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.config import behaviors
from heretic.config.declaration import GROUPS
from heretic.config.foreign.page import migration_page
from heretic.config.schema import Kind, SettingInfo, consent_names, settings_of
from heretic.config.tables import DatasetSpecification, ScorerSpecification

if TYPE_CHECKING:
    from tomlkit import TOMLDocument
    from tomlkit.items import Item, Table

TOML_FILE = Path("config.default.toml")
PAGE_FILE = Path("docs") / "settings.md"
MIGRATION_FILE = Path("docs") / "migrate.md"

_WIDTH = 98
_PAIR = 2
_TOML_HEAD = """\
Every setting of Heretic with its default and its meaning; printed by `heretic config`.
Settings that are commented out are unset; the value shown is an example.
Copy what you want to change to config.toml, or name a file by --config FILE. What lets code of
others run or sends data away (docs/settings.md, Consent) counts only in a file that you name.
"""
_PAGE_HEAD = """\
# Settings

<!-- Written by `python -m heretic.config.reference --write`; edit src/heretic/config/fields/. -->

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

A key that is not a setting is an error in every place; the error names the nearest setting.
Variables that do not start with `HERETIC_` are ignored. Tables can be given in part: what is left
out keeps its default. Lists are JSON in variables (`'["auto", "float32"]'`), or the text of a
single element; on the command line, the option can also be repeated. Empty text unsets a setting
that may be unset. `heretic config` prints everything below as a TOML file.

<a name="consent"></a>
**Consent.** A `config.toml` or `.env` that lies in the working directory may come from anybody. It
cannot let code of others run or send data away. So these count only from the arguments, the command
line, the environment, the secrets folder, or a file named by `--config`: CONSENTS, scorers from
outside Heretic (`file.py:Class`, `module:Class`), and a scorer's `endpoint` and `api_key_env`. A
behaviour named in one of these places may name scorers and judges too; a preset may not. Elsewhere
they are an error that gives the options to say it with. In `.env`, `${NAME}` stands for a variable
of the same file, never for one of the environment.

Settings that say "Unset: ask" are questions. With a terminal they are asked; without one, the front
is printed together with the command that continues from there.
"""

_PROMPT_SETS = """\
Every prompt set is a table with these keys, or a list of such tables (`[[good_prompts]]`), whose
prompts follow one another. What an element of a list leaves out has the default of this table,
except that `dataset` is required; a list is replaced as a whole, never changed by key:"""

_PRESETS_HEAD = """
## Presets

`preset = "auto"` takes the first of these that fits `config.json` and the model's name. Loading and
`heretic inspect` say which one it is and what it sets. Everything you set yourself, in whatever
place, overrides it; tables such as `chat_template_kwargs` are merged key by key. What a preset has
set is recorded with a run like any other setting, so that a run continues as it began.

A file of your own, `preset = "mine.toml"`, has one table for each preset, with conditions
(`model_types`, `names`, `stored_dtypes`: lists of globs, each of which may be left out), `why`, and
settings. Its presets are tried first, in order, then those below; the first that fits applies. It
cannot set `model`, `model_commit`, `evaluate_model` and `preset`, nor give a consent.

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
    """The text of a usable TOML file: every setting with its default and its meaning."""
    import tomlkit

    document = tomlkit.document()
    _comment(document, _TOML_HEAD)
    for group in GROUPS:
        # tables come last: in TOML, a plain key after a table would belong to it
        plain = [setting for setting in _group(group) if not _is_tables(setting)]
        if not plain:
            continue
        document.add(tomlkit.nl())
        _comment(document, _heading(group))
        for setting in plain:
            document.add(tomlkit.nl())
            _comment(document, setting.description)
            _add(document, setting.name, setting.default, setting.example)
    _add_datasets(document)
    _add_scorers(document)
    return tomlkit.dumps(document)


def settings_page() -> str:
    """The reference page, in Markdown."""
    from heretic.config.presets import documented

    parts = [_PAGE_HEAD.replace("CONSENTS", ", ".join(f"`{name}`" for name in consent_names()))]
    for group in GROUPS:
        parts.append(
            f"\n## {group}\n\n| setting | type | default | meaning |\n| --- | --- | --- | --- |\n"
        )
        parts.extend(_row(setting) for setting in _group(group))
        if group == "Prompts":
            keys = settings_of(DatasetSpecification)
            parts.append(_inner_table(_PROMPT_SETS, keys))
        if group == "Scorers":
            keys = settings_of(ScorerSpecification)
            parts.append(_inner_table("Every element of `scorers` has these keys:", keys))
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
    """Files under `root` that differ from what `write` would write."""
    return [path for path, text in _files(root) if not path.is_file() or _read(path) != text]


def write(root: Path) -> None:
    """Write all files under `root`."""
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
    yield root / MIGRATION_FILE, migration_page()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _group(name: str) -> list[SettingInfo]:
    return [setting for setting in settings_of() if setting.group == name]


def _is_tables(setting: SettingInfo) -> bool:
    """Whether TOML writes it as tables of its own."""
    tables = setting.kind in ("table", "list of tables")
    return tables or (setting.kind == "open table" and setting.example is None)


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
        container.add(name, toml_value(default))
    else:
        container.add(tomlkit.comment(f"{name} = {toml_value(example).as_string()}"))


def toml_value(value: Any) -> Item:
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
            array.append(toml_value(element))
        # nested ones stay on one line: tomlkit would not indent them
        flat = bool(value) and isinstance(value[0], str) and len(value) == _PAIR
        array.multiline(multiline=not flat and len(array.as_string()) > _WIDTH // 2)
        return array
    item: Item = tomlkit.item(value)
    return item


def _add_datasets(document: TOMLDocument) -> None:
    import tomlkit

    document.add(tomlkit.nl())
    _comment(document, _heading("Prompts, continued"))
    for position, setting in enumerate(filter(_is_tables, _group("Prompts"))):
        if setting.default is None:
            document.add(tomlkit.nl())
            _comment(document, f"[{setting.name}]\n{setting.description}")
            for name, value in (setting.example or {}).items():
                _add(document, name, None, value)
            continue
        table = tomlkit.table()
        _comment(table, setting.description)
        for key in setting.keys:
            if position == 0:  # the keys are explained in the first table only
                _comment(table, key.description)
            value = getattr(setting.default, key.name)
            _add(table, key.name, value, "" if value is None else None)
        document.add(setting.name, table)


def _add_scorers(document: TOMLDocument) -> None:
    import tomlkit

    settings = {setting.name: setting for setting in _group("Scorers")}
    scorers = settings["scorers"]
    document.add(tomlkit.nl())
    _comment(document, _heading("Scorers, continued"))
    document.add(tomlkit.nl())
    _comment(document, scorers.description)
    for key in scorers.keys:
        _comment(document, f"{key.name}: {key.description}")
    tables = tomlkit.aot()
    for scorer in scorers.default:
        table = tomlkit.table()
        for name, value in scorer.model_dump().items():
            table.add(name, value)
        tables.append(table)
    document.add("scorers", tables)
    document.add(tomlkit.nl())
    _comment(document, settings["scorer"].description)
    _comment(document, "[scorer.NAME]")


def _inner_table(sentence: str, keys: Iterable[SettingInfo]) -> str:
    rows = "".join(_row(key) for key in keys)
    head = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
    return f"\n{sentence}\n\n{head}{rows}"


def _row(setting: SettingInfo) -> str:
    cells = [f"`{setting.name}`", _type(setting), _default_cell(setting), setting.description]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


_TYPES: Mapping[Kind, str] = {
    "switch": "true, false",
    "mapping": "table",
    "open table": "table",
}
"""Kinds of settings that have another name on the page."""


def _type(setting: SettingInfo) -> str:
    """The type of a setting in words."""
    if setting.kind == "choice":
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    return _TYPES.get(setting.kind, setting.kind)


def _default_cell(setting: SettingInfo) -> str:
    default = setting.default
    if setting.required:
        return "required"
    if default is None or (default == "" and setting.example):
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
