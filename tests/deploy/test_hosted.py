"""The notebook for hosted machines: its code is Python, and its commands are Heretic's."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest
from tests.test_commands import parse

NOTEBOOK = Path(__file__).parents[2] / "examples" / "hosted.ipynb"
STORED: Any = nbformat.read(NOTEBOOK, as_version=4)
CODE = [cell for cell in STORED.cells if cell.cell_type == "code"]


def heretic_commands(tree: ast.AST) -> list[list[str]]:
    """The lists that begin with the interpreter, `-m` and `heretic`; what is computed is `X`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.List):
            words = [
                str(one.value) if isinstance(one, ast.Constant) else "X"
                for one in node.elts
                if not isinstance(one, ast.Starred)
            ]
            if words[1:3] == ["-m", "heretic"]:
                found.append(words[3:])
    return found


def test_it_is_valid_and_stored_without_outputs():
    nbformat.validate(STORED)
    assert [(cell.outputs, cell.execution_count) for cell in CODE] == [([], None)] * len(CODE)


def test_its_commands_are_understood():
    commands = [one for cell in CODE for one in heretic_commands(ast.parse(cell.source))]
    assert [command[0] for command in commands] == ["--version", "demo", "report"]
    for command in commands[1:]:
        parse(" ".join(["heretic", *command]))


def test_a_mistake_would_be_found():
    with pytest.raises(Exception, match="no-such"):
        parse("heretic demo --no-such-option 1")


def test_the_report_is_shown_without_a_warning(recwarn: pytest.WarningsRecorder):
    """IPython warns of a text that begins as a frame does."""
    shown = pytest.importorskip("IPython.display")
    [cell] = [cell for cell in CODE if "<iframe" in cell.source]
    expression = cell.source.strip().splitlines()[-1]
    found = eval(expression, {"HTML": shown.HTML, "page": "a page"})
    assert 'sandbox="allow-scripts"' in found.data
    assert not recwarn.list
