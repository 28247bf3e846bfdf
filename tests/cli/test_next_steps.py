"""A save ends with what can be done next, as commands that a shell takes as they stand."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

from rich.console import Console, Group
from tests.support.terminal import written

from heretic.cli.display.next_steps import after_saving, next_steps
from heretic.cli.main import COMMANDS

PLACE = Path("a folder with spaces") / ("long" * 30)


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]


def test_commands_are_whole_on_a_narrow_screen() -> None:
    steps = after_saving(PLACE, "org/m", (Path("checkpoints/m-1"), 2), whole=True)
    console = Console(file=io.StringIO(), width=40)
    console.print(Group("saved", next_steps(steps)), crop=False)
    found = commands(written(console))
    assert found == [["heretic", *arguments] for _, arguments in steps]
    assert all(command[1] in COMMANDS for command in found)
    assert found[0] == ["heretic", "chat", str(PLACE)]
    assert found[1] == ["heretic", "chat", "checkpoints/m-1", "--trial-index", "2"]


def test_gguf_files_are_offered_of_a_whole_model_alone() -> None:
    for run in (None, (Path("checkpoints/m-1"), 2)):
        for whole in (True, False):
            steps = after_saving(PLACE, "org/m", run, whole=whole)
            assert (["gguf", str(PLACE)] in [command for _, command in steps]) == whole


def test_without_a_run_the_original_is_compared() -> None:
    _, (_, compare) = after_saving(PLACE, "org/m")
    assert compare == ["evaluate", str(PLACE), "--against", "org/m"]
