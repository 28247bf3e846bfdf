"""Makes reports of runs in a process of their own, and keeps them while the server runs."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from heretic.errors import HereticError
from heretic.system.display import safe

POLICY = (
    "sandbox allow-scripts; default-src 'none'; base-uri 'none'; form-action 'none'; "
    "img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'self'"
)
"""A report is no part of this page: its scripts have no origin, so that no cookie and no request of
theirs counts here. Its own policy, within it, is narrower still."""


class Reports:
    """Reports by their keys, which nobody can guess."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="heretic-ui-")

    async def make(self, runs: Sequence[Path]) -> str:
        """Write the report of a run, or of several, as `heretic report` does; returns its key.

        Raises:
            HereticError: It cannot be made.
        """
        key = secrets.token_hex(16)
        words = ["report", *map(str, runs), "-o", str(self._path(key))]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # modules in the working folder are not ours
            "-m",
            "heretic",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, told = await process.communicate()
        if process.returncode != 0 or not self._path(key).is_file():
            lines = told.decode(errors="replace").strip().splitlines() or ["No report was written."]
            raise HereticError(safe(lines[-1].removeprefix("Error: ")))
        return key

    def content(self, key: str) -> bytes | None:
        """A report; None if there is none of that key."""
        if len(key) != 32 or not set(key) <= set("0123456789abcdef"):
            return None
        path = self._path(key)
        return path.read_bytes() if path.is_file() else None

    def close(self) -> None:
        """Delete them."""
        self._folder.cleanup()

    def _path(self, key: str) -> Path:
        return Path(self._folder.name) / f"{key}.html"
