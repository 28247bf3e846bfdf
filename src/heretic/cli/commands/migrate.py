"""`heretic migrate FILE`: settings of heretic-llm, another project, as TOML of this tool."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heretic.errors import SettingsError
from heretic.system.display import safe

if TYPE_CHECKING:
    from heretic.config.foreign.translate import Entry, Translation

_WIDTH = 80
_NOTHING = 2


@click.command("migrate", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the TOML into this file instead of printing it.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file of --output if it exists.")
def command(file: Path, output: Path | None, overwrite: bool) -> int:
    """Convert settings of heretic-llm (another project) into TOML of this tool.

    FILE is its config.toml (releases 1.x and 2.x), its judge.toml, or its reproduce.json. The TOML
    goes to standard output; what was renamed, and what was left out and why, to standard error.
    docs/migrate.md lists every key. The exit status is 2 if nothing could be taken.
    """
    from heretic.config.migrate import as_toml, migrate

    if file.is_dir():
        raise SettingsError(
            f"{file} is a folder.", remedy="Name the file in it, such as its config.toml."
        )
    if output is not None and output.exists() and not overwrite:
        raise SettingsError(
            f"{output} exists.", remedy="Name another file, or pass --overwrite to replace it."
        )
    found = migrate(file)
    for line in report(found, file):
        click.echo(safe(line), err=True)
    if not found.values:
        return _NOTHING
    text = as_toml(found, file)
    if output is None:
        click.echo(text, nl=False)
        return 0
    from heretic.system.files import write_atomic

    write_atomic(output, text, parents=True)
    click.echo(f"Written to {output}.", err=True)
    return 0


def report(found: Translation, file: Path) -> Iterator[str]:
    """What became of the keys of a file, in lines of 80 columns."""
    from heretic.config.foreign.lines import counts, title

    yield from textwrap.wrap(f"{file} holds {title(found)}: {counts(found)}.", _WIDTH)
    same = found.of("same")
    if same:
        yield from _section("As it was", [])
        names = ", ".join(entry.key for entry in same)
        yield from textwrap.wrap(names, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    for heading, handlings in _SECTIONS:
        entries = found.of(*handlings)
        if entries:
            yield from _section(heading, entries)


_SECTIONS = (
    ("Renamed or converted", ("renamed", "converted")),
    ("Of this tool already", ("ours",)),
    ("Done by itself, nothing to set", ("needless",)),
    ("Left out", ("left", "unknown")),
    ("Not carried over: only you can allow it", ("consent",)),
)


def _section(heading: str, entries: Iterable[Entry]) -> Iterator[str]:
    yield ""
    yield f"{heading}:"
    for entry in entries:
        named = f"  {entry.key}"
        yield f"{named} -> {entry.to}" if entry.to not in ("", entry.key) else named
        text = f"{entry.text[:1].upper()}{entry.text[1:]}."
        if entry.text:
            indent = "      "
            yield from textwrap.wrap(
                text, _WIDTH, initial_indent=indent, subsequent_indent=indent,
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
