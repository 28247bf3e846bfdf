"""Runs a stand-in for a server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Protocol


class StandIn(Protocol):
    """What a stand-in is told: its address, and when it closes."""

    url: str
    closing: Event


@dataclass
class Place:
    """A stand-in that is told no more than that."""

    url: str = ""
    closing: Event = field(default_factory=Event)


@contextmanager
def running(found: StandIn, handler: type[BaseHTTPRequestHandler]) -> Iterator[None]:
    """Answer requests by this handler until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        found.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
