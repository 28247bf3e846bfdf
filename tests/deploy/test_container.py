"""The container's file, without a container engine: what it copies, installs, starts and asks."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.support.loopback import Place, running

from heretic.cli.main import heretic

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
INSTRUCTIONS = re.sub(r"\\\n\s*", "", DOCKERFILE)


def words_of(instruction: str) -> list[str]:
    """The words of the last instruction of that name; a JSON list is read as one."""
    found = re.findall(rf"^{instruction}\s+(.*)$", INSTRUCTIONS, re.MULTILINE)[-1]
    words: list[str] = json.loads(found[found.index("[") :]) if "[" in found else found.split()
    return words


def test_extras_exist():
    with (ROOT / "pyproject.toml").open("rb") as file:
        known = tomllib.load(file)["project"]["optional-dependencies"]
    [given] = re.findall(r"^ARG EXTRAS=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert set(given.split(",")) <= set(known)
    assert "ui" in given.split(",")


def test_what_is_copied_is_there_and_not_ignored():
    allowed = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    ]
    copied = [
        name
        for line in re.findall(r"^COPY (.*)$", INSTRUCTIONS, re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert name in allowed


def test_it_starts_the_page_as_no_root():
    command = heretic.get_command(None, words_of("CMD")[0])  # type: ignore[arg-type]
    assert command is not None
    context = command.make_context("ui", words_of("CMD")[1:])
    assert context.params["host"] == "0.0.0.0"
    assert context.params["port"] == 7860
    assert context.params["opens"] is False
    assert words_of("USER") == ["heretic"]
    assert words_of("ENTRYPOINT") == ["heretic"]


class Answering(BaseHTTPRequestHandler):
    status = 401

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(params=[401, 200, 500])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A server's port, and the status of its answers."""
    place = Place()
    with running(place, type("Handler", (Answering,), {"status": request.param})):
        port = urlsplit(place.url).port
        assert port is not None
        yield port, request.param


def health(port: int) -> int:
    """Exit status of the health check, for a page at another port."""
    program, *arguments = words_of("HEALTHCHECK")
    assert program == "python"
    arguments = [argument.replace("7860", str(port)) for argument in arguments]
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False).returncode


def test_the_health_check_wants_a_page_that_asks_for_its_token(server: tuple[int, int]):
    port, status = server
    assert (health(port) == 0) == (status == 401)


def test_the_health_check_fails_where_nothing_answers():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert health(port) != 0
