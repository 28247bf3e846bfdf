"""A stand-in for a server that streams chats, which misbehaves on request. Loopback only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Event
from typing import Any

from tests.support.loopback import running

STREAM = "text/event-stream"


def event(text: str, **fields: Any) -> bytes:
    """One event of a reply, with letters of all scripts as they are."""
    choice = {"index": 0, "delta": {"content": text, **fields}, "finish_reason": None}
    data = {"object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def end(reason: str = "stop") -> bytes:
    choice = {"index": 0, "delta": {}, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n".encode()


def reply(*texts: str) -> bytes:
    """A whole stream."""
    return b"".join(map(event, texts)) + end()


@dataclass
class ChatServer:
    """What it does and what it was asked.

    Attributes:
        names: Its models; None if it has no list.
        key: What it asks for; empty if nothing.
        answers: Bodies of the next answers, each as the pieces in which it is sent; the last one is
            given again.
        status: Of answers to chats, one after the other; 200 beyond them.
        kind: Content type of answers to chats.
        headers: Further headers of answers that are not 200.
        waits: Whether an answer is not ended before the server is.
        breaks: Whether the connection breaks where the answer ends.
        gone: Set when the other side closed the connection in the middle of an answer.
    """

    names: list[str] | None = field(default_factory=lambda: ["stand-in"])
    key: str = ""
    answers: list[Iterable[bytes]] = field(default_factory=lambda: [[reply("Hello", " there.")]])
    status: list[int] = field(default_factory=list)
    kind: str = STREAM
    headers: dict[str, str] = field(default_factory=dict)
    waits: bool = False
    breaks: bool = False
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    paths: list[str] = field(default_factory=list)
    gone: Event = field(default_factory=Event)
    closing: Event = field(default_factory=Event)


class _Handler(BaseHTTPRequestHandler):
    state: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        state = self._seen()
        if self._is_known(state):
            if state.names is None or not self.path.endswith("/models"):
                self._whole(404, {"error": {"message": "no such page"}})
            else:
                rows = [{"id": name, "object": "model"} for name in state.names]
                self._whole(200, {"object": "list", "data": rows})

    def do_POST(self) -> None:
        state = self._seen()
        state.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status = state.status.pop(0) if state.status else 200
        if not self._is_known(state):
            return
        if status != 200:
            self._whole(status, {"error": {"message": f"status {status} \x1b[31mred temperature"}})
            return
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", state.kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
        with suppress(OSError):
            for piece in pieces:
                self._chunk(piece)
            while state.waits and not state.closing.wait(0.02):
                self._chunk(b": still there\n\n")
            if not state.breaks:
                self.wfile.write(b"0\r\n\r\n")
            return
        state.gone.set()

    def _chunk(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.flush()

    def _seen(self) -> ChatServer:
        self.state.paths.append(self.path)
        self.state.keys.add(self.headers.get("Authorization", ""))
        return self.state

    def _is_known(self, state: ChatServer) -> bool:
        if not state.key or self.headers.get("Authorization") == f"Bearer {state.key}":
            return True
        self._whole(401, {"error": {"message": f"wrong key {self.headers['Authorization']}"}})
        return False

    def _whole(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (self.state.headers if status != 200 else {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve_chats(**state: Any) -> Iterator[ChatServer]:
    """Run the stand-in until the block ends."""
    found = ChatServer(**state)
    handler = type("BoundHandler", (_Handler,), {"state": found})
    with running(found, handler):
        yield found
