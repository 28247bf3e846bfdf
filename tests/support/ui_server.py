"""A real server of the page, in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

SECONDS = 120
"""For what should take one: machines may be busy."""


@dataclass
class Answer:
    """An answer of the server; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: str


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int
    token: str
    folder: Path

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return self.opened("/")

    def opened(self, path: str) -> str:
        """Where a browser that has no cookie yet opens a page.

        The guard's answer refreshes itself to the page, after it has loaded: a test that goes to
        another page right after it interrupts, or is interrupted.
        """
        return f"{self.base}{path}?token={self.token}"

    def ask(
        self,
        path: str,
        headers: Mapping[str, str | list[str]] | None = None,
        method: str = "GET",
        body: bytes | None = None,
    ) -> Answer:
        """A request with these headers only, and `Host` as a browser has it unless it is named."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            given = {"Host": f"127.0.0.1:{self.port}", **(headers or {})}
            if body is not None:
                given.setdefault("Content-Length", str(len(body)))
            for name, values in given.items():
                for value in values if isinstance(values, list) else [values]:
                    connection.putheader(name, value)
            connection.endheaders(body)
            found = connection.getresponse()
            # What follows an upgrade is no body.
            text = "" if found.status == 101 else found.read().decode(errors="replace")
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, text)
        finally:
            connection.close()

    def cookie(self) -> str:
        """What a browser sends after it has opened the address."""
        return self.ask(f"/?token={self.token}").headers["set-cookie"].partition(";")[0]

    def shake_hands(self, headers: Mapping[str, str]) -> int:
        """The status of a websocket's handshake."""
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        return self.ask(
            "/_nicegui_ws/socket.io/?EIO=4&transport=websocket", {**upgrade, **headers}
        ).status


@contextmanager
def serving(
    folder: Path,
    runs: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Serve run folders, from a working folder, until the block ends."""
    words = ["ui", "--no-open", "--port", "0", "--runs", str(runs), *options]
    with (folder / "stderr.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "heretic", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r":(\d+)/\?token=(\S+)", line)
        assert found, (line, (folder / "stderr.txt").read_text())
        yield Server(process, int(found[1]), found[2], folder)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
