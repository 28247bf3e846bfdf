"""Driving `terminal_program.py` through a pseudo-terminal, or through pipes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
from rich.console import Console

PROGRAM = Path(__file__).with_name("terminal_program.py")
DOWN, CTRL_C, CTRL_D, CTRL_A, CTRL_K = "\x1b[B", "\x03", "\x04", "\x01", "\x0b"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

_DROPPED = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "JPY_PARENT_PID")


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    return {
        **kept,
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "PYTHONIOENCODING": "utf-8",
        **changes,
    }


def arguments(mode: str, answers: dict[str, Any]) -> list[str]:
    return [str(PROGRAM), mode, json.dumps(answers)]


def in_terminal(
    mode: str,
    folder: Path,
    *,
    columns: int = 100,
    shell: str | None = None,
    env: dict[str, str] | None = None,
    **answers: Any,
) -> Any:
    """The program on a pseudo-terminal, as a pexpect child.

    Args:
        shell: A line of bash that runs the program by `"$@"`.
    """
    command = [sys.executable, *arguments(mode, answers)]
    if shell is not None:
        command = ["bash", "-c", shell, "bash", *command]
    child = pexpect.spawn(
        command[0],
        command[1:],
        cwd=str(folder),
        env=environment(**(env or {})),
        dimensions=(40, columns),
        encoding="utf-8",
        timeout=240,
    )
    child.delaybeforesend = 0.1
    return child


def in_pipe(
    mode: str, folder: Path, *, stdin: str = "", env: dict[str, str] | None = None, **answers: Any
) -> subprocess.CompletedProcess[str]:
    """The program without any terminal."""
    return subprocess.run(
        [sys.executable, *arguments(mode, answers)],
        cwd=folder,
        env=environment(**(env or {})),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )


def plain(text: str) -> str:
    """What a terminal would show of `text`, less the movements of the cursor."""
    return ESCAPE.sub("", text)


def end(child: Any) -> int:
    """Wait for the end; the exit status."""
    child.expect(pexpect.EOF)
    child.close()
    return int(child.exitstatus if child.exitstatus is not None else -child.signalstatus)


def hang_up(child: Any) -> int:
    """Close the terminal and wait for the end; the exit status."""
    os.close(child.child_fd)
    _, status = os.waitpid(child.pid, 0)
    return os.waitstatus_to_exitcode(status)


def written(console: Console) -> str:
    """What was written to a console over a `StringIO`."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
