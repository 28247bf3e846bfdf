"""Every command in the documents is run here, or parsed by the real options, or marked as neither.

A fenced block of commands follows one of these comments, which readers do not see:

    <!-- run -->               run in an empty folder, with the files of `FILES`
    <!-- parsed: REASON -->    commands of Heretic alone; options and their values are read
    <!-- not run: REASON -->   anything; commands of Heretic among them are parsed all the same
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from heretic.cli.main import COMMANDS, heretic
from heretic.cli.options import SettingsOptions, settings_options
from heretic.errors import HereticError

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]

FILES = {"replies.jsonl": '{"response": "I cannot help with that."}\n'}
"""What commands that are run find in their folder."""

BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]*) -->\n)?[ ]*```(?:sh|console|bash|shell)\n(?P<text>.*?)```", re.DOTALL
)
MARK = re.compile(r"run|(?:parsed|not run): \S.*")
OUTSIDE_BLOCKS = re.compile(
    r"^ {4,}(?:\$ )?(?:heretic|pip|python3?|make|uv|pipx|hf) ", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """Commands of a page, each on one line, and how they are marked."""

    page: str
    mark: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.lines[0]}"


def commands(text: str) -> Iterator[str]:
    """The lines of a block; continued lines are joined, comments and prompts left out."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        if words:
            yield line.strip().removeprefix("$ ")


def blocks_of(name: str, text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        yield Block(name, found["mark"] or "", tuple(commands(found["text"])))


BLOCKS = [block for path in PAGES for block in blocks_of(path.name, path.read_text("utf-8"))]
OURS = sorted({line for block in BLOCKS for line in block.lines if line.startswith("heretic ")})
RUN = [block for block in BLOCKS if block.mark == "run"]


def test_every_block_of_commands_is_marked():
    assert len(BLOCKS) >= 30
    assert [str(block) for block in BLOCKS if not MARK.fullmatch(block.mark)] == []


def test_only_commands_of_heretic_are_parsed():
    parsed = [block for block in BLOCKS if block.mark.startswith("parsed")]
    foreign = [line for block in parsed for line in block.lines if line not in OURS]
    assert foreign == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_stands_outside_a_marked_block(page: Path):
    text = BLOCK.sub("", page.read_text("utf-8"))
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    assert OUTSIDE_BLOCKS.findall(text) == []


def arguments(line: str) -> list[str]:
    """What the shell gives to Heretic for a line: without comments and redirections."""
    words = shlex.split(line, comments=True)
    ends = [index for index, word in enumerate(words) if word in {">", "|", "&&"}]
    return words[1 : min(ends, default=len(words))]


@settings_options
def as_options(options: SettingsOptions, **_: Any) -> SettingsOptions:
    return options


def parse(line: str) -> None:
    """Read a command line to its last option; nothing runs.

    Raises:
        click.ClickException: An option or argument that the command does not take.
        HereticError: A setting's value that it does not take.
    """
    given = arguments(line)
    if given[0] in {"--version", "--help", "--help-all"}:
        return
    name, rest = (given[0], given[1:]) if given[0] in COMMANDS else ("run", given)
    command = heretic.get_command(click.Context(heretic), name)
    assert command is not None
    context = command.make_context(name, rest)
    settings = {key: context.params[key] for key in context.params if key.startswith("setting__")}
    as_options(**settings, settings_file=None).load(require_model=False)


@pytest.mark.parametrize("line", OURS)
def test_what_documents_tell_to_type_is_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    parse(line)


@pytest.mark.parametrize(
    "line",
    [
        "heretic MODEL --n-trails 5",
        "heretic MODEL --trial-index best",
        "heretic audit",
        "heretic export RUN OTHER",
        "heretic MODEL --export-strategy zip",
    ],
)
def test_mistakes_would_be_found(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((click.ClickException, HereticError)):
        parse(line)


@pytest.mark.parametrize("block", RUN, ids=str)
def test_what_is_marked_so_runs(block: Block, tmp_path: Path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = tmp_path / "bin" / "heretic"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m heretic "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join(block.lines)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
