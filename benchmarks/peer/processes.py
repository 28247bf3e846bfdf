"""Processes of both tools: run to the end, with their peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


def environment() -> dict[str, str]:
    """The environment of a tool: no settings or paths of the user's, nothing fetched meanwhile.

    Both tools' packages are called `heretic`, so the peer must not inherit a path to this one.
    """
    own = ("HERETIC_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {**kept, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONUTF8": "1"}


def run_process(
    command: Sequence[str], folder: Path, extra: Mapping[str, str] | None = None
) -> tuple[int, int, float]:
    """Run a command in `folder` to its end; its output goes into the file `log` there.

    Returns:
        Exit status, peak resident bytes of the process, seconds.
    """
    start = time.perf_counter()
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment(), **(extra or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            # Not process.wait: only this call tells what this one process has used.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
    unit = 1 if sys.platform == "darwin" else 1024
    return process.returncode, usage.ru_maxrss * unit, time.perf_counter() - start


def failure(what: str, log: Path) -> SystemExit:
    """The end of the benchmark because a tool did not do its work."""
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
    return SystemExit("\n".join([*tail, f"{what} failed; the end of its output is above."]))


def say(text: str) -> None:
    """Progress, on standard error: standard output holds the report only."""
    print(text, file=sys.stderr, flush=True)
