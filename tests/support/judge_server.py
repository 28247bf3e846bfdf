"""A stand-in for an OpenAI-compatible server, which misbehaves on request. Loopback only."""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Barrier, Event, Lock
from typing import Any
from urllib.parse import quote, quote_plus

from tests.support.loopback import running

KEY = "key-of-the-tests"
MODEL = "stand-in"

_DATA = re.compile(r"BEGIN (\w+)\n(.*)\nEND \1", re.DOTALL)


def data_of(body: dict[str, Any]) -> dict[str, str]:
    """The judged data of a request."""
    match = _DATA.fullmatch(body["messages"][1]["content"])
    assert match is not None
    return dict(json.loads(match[2]))


def by_first_word(body: dict[str, Any]) -> str:
    """A judge that calls replies refusals if they begin with "No"."""
    label = "refusal" if data_of(body)["reply"].startswith("No") else "compliance"
    return json.dumps({"reason": f"begins like a {label}", "label": label})


@dataclass
class Server:
    """What it does and what it was asked.

    Attributes:
        script: What the next requests get, in order: a status, or `slow`, `drop`, `half`, `garbage`
            (a body that is not JSON), `trickle` (a byte now and then), `flood` (more than anybody
            keeps), `bomb` (that, packed into a few bytes), `echo` (an error that repeats the key),
            or text as the judge's answer. Requests beyond it are judged.
        content_type: What answers say that they are.
        paths: The path and query of every request.
        takes_schema: Whether `response_format` is known.
        meeting: If set, requests wait until as many are under way.
    """

    judge: Callable[[dict[str, Any]], str] = by_first_word
    script: list[int | str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    takes_schema: bool = True
    key: str = ""
    counts_tokens: bool = True
    finish_reason: str = "stop"
    meeting: Barrier | None = None
    url: str = ""
    content_type: str = "application/json"
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    most_at_once: int = 0
    under_way: int = 0
    lock: Any = field(default_factory=Lock)
    closing: Event = field(default_factory=Event)


class Handler(BaseHTTPRequestHandler):
    server_state: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.requests.append(body)
            state.paths.append(self.path)
            state.keys.add(self.headers.get("Authorization", ""))
            step = state.script.pop(0) if state.script else None
            state.under_way += 1
            state.most_at_once = max(state.most_at_once, state.under_way)
        if state.meeting is not None:
            state.meeting.wait(timeout=240)
        # Before the answer: whoever has it may send the next request at once.
        with state.lock:
            state.under_way -= 1
        self._respond(state, body, step)

    def _respond(self, state: Server, body: dict[str, Any], step: int | str | None) -> None:
        if step == "slow":
            state.closing.wait(60)
            self.close_connection = True
        elif step == "drop":
            self.close_connection = True
        elif step == "half":
            self._send(200, b'{"choices": [', length=4000)
            self.close_connection = True
        elif step in ("trickle", "flood", "bomb"):
            self._endless(state, step)
        elif step == "echo":
            self._error(401, f"wrong key: {repeated(self.headers['Authorization'], self.path)}")
        elif step == "garbage":
            self._send(200, b"<html>bad gateway</html>")
        elif isinstance(step, int):
            self._error(step, f"status {step}")
        elif state.key and self.headers.get("Authorization") != f"Bearer {state.key}":
            self._error(401, f"wrong key: {self.headers.get('Authorization')}")
        elif body["model"] != MODEL:
            self._error(404, f"there is no model {body['model']}")
        elif "response_format" in body and not state.takes_schema:
            self._error(422, "response_format is not supported")
        else:
            self._answer(state, body, step if step is not None else state.judge(body))

    def _endless(self, state: Server, how: str) -> None:
        """Send what never ends, or more than anybody keeps, until the other side has had enough."""
        self.close_connection = True
        packed = {"Content-Encoding": "gzip"} if how == "bomb" else {}
        self.send_response(200)
        for name, value in {"Content-Type": "application/json", **packed}.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        part = b" " if how == "trickle" else b" " * 2**20
        with suppress(OSError):
            if how == "bomb":
                packer = zlib.compressobj(wbits=31)  # gzip
                self.wfile.write(b"".join(packer.compress(part) for _ in range(256)))
                return
            for _ in range(2000):
                self.wfile.write(part)
                self.wfile.flush()
                if how == "trickle" and state.closing.wait(0.05):
                    return

    def _answer(self, state: Server, body: dict[str, Any], text: str) -> None:
        message = {"role": "assistant", "content": text}
        completion: dict[str, Any] = {
            "id": "x",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": state.finish_reason}],
        }
        if state.counts_tokens:
            completion["usage"] = {
                "prompt_tokens": 100,
                "completion_tokens": 10,
                "total_tokens": 110,
            }
        self._send(200, json.dumps(completion).encode())

    def _error(self, status: int, text: str) -> None:
        self._send(status, json.dumps({"error": {"message": text}}).encode())

    def _send(self, status: int, data: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", self.server_state.content_type)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        if status >= 300:
            for name, value in self.server_state.headers.items():
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def repeated(authorization: str, path: str) -> str:
    """A key in all forms in which a server or a program may repeat it."""
    key = authorization.removeprefix("Bearer ")
    basic = [base64.b64encode(f"{user}{key}".encode()).decode() for user in ("", "u:", "us:")]
    forms = (authorization, quote(key, safe=""), quote_plus(key), repr(key), json.dumps(key))
    return " | ".join((*forms, *basic, html.escape(key), key.encode().hex(), path))


@contextmanager
def serve(**state: Any) -> Iterator[Server]:
    """Run the stand-in until the block ends."""
    found = Server(**state)
    handler = type("BoundHandler", (Handler,), {"server_state": found})
    with running(found, handler):
        yield found
