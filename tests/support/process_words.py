"""Command lines of processes that may end at any moment."""

from __future__ import annotations

from contextlib import suppress

import psutil


def words_of(process: psutil.Process) -> str:
    """A process's command line; empty if it has ended meanwhile."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""
