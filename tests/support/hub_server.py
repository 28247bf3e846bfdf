"""A stand-in for the Hub on the loopback interface: the endpoints that an upload uses.

It keeps repositories in memory, checks tokens, hashes and sizes as the Hub does, and records every
request, so that tests can tell what went over the wire. Files go the way of Git LFS, which the
Hub's client takes when `HF_HUB_DISABLE_XET` is set.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml  # type: ignore[import-untyped]

WRITE_TOKEN = "hf_write"
READ_TOKEN = "hf_read"
USER = "tester"


@dataclass
class Repository:
    """One model repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


@dataclass
class Hub:
    """The server's state; tests arrange it and look at it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Part of a path to the status and message that requests to it get."""
    large_files: bool = True
    """Whether weights go the way of large files; the Hub takes small ones either way."""


class Handler(BaseHTTPRequestHandler):
    """Speaks the Hub's protocol."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        self._handle("GET")

    def do_HEAD(self) -> None:
        self._handle("HEAD")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        self.method = method
        self.body = self._body()
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{method} {path}")
        for part, (status, message) in self.hub.failures.items():
            if part in path:
                return self._send(status, {"error": message}, {"X-Error-Message": message})
        for verb, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match is not None and method == verb:
                return action(self, **match.groupdict())
        return self._error(404, "no such endpoint")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.method != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, {"error": message}, headers)

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may_write(self, repo_id: str) -> bool:
        if self._token not in {WRITE_TOKEN, READ_TOKEN}:
            self._error(401, "Invalid credentials in Authorization header")
            return False
        if self._token == READ_TOKEN or not repo_id.startswith(f"{USER}/"):
            self._error(403, "You don't have the rights to write there")
            return False
        return True

    def whoami(self) -> None:
        if self._token not in {WRITE_TOKEN, READ_TOKEN}:
            return self._error(401, "Invalid credentials in Authorization header")
        return self._send(200, {"type": "user", "name": USER, "auth": {}})

    def create(self) -> None:
        wanted = json.loads(self.body)
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if not self._may_write(repo_id):
            return None
        if repo_id in self.hub.repositories:
            return self._error(409, "You already created this model repo")
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repositories[repo_id] = Repository(private, {".gitattributes": b"*"})
        return self._send(200, {"url": f"{self.hub.url}/{repo_id}"})

    def validate_yaml(self) -> None:
        text = json.loads(self.body)["content"]
        head = text.split("---\n")[1] if text.startswith("---\n") else ""
        metadata = yaml.safe_load(head)
        if not isinstance(metadata, dict) or not isinstance(metadata.get("tags"), list):
            return self._send(400, {"errors": [{"message": "tags must be a list"}]})
        return self._send(200, {"errors": [], "warnings": []})

    def _find(self, repo_id: str) -> Repository | None:
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and self._token not in {WRITE_TOKEN, READ_TOKEN}):
            self._error(404, "Repository not found", "RepoNotFound")
            return None
        return found

    def info(self, repo: str) -> None:
        if (found := self._find(repo)) is not None:
            siblings = [{"rfilename": name} for name in found.files]
            facts = {"_id": "0", "id": repo, "private": found.private, "siblings": siblings}
            self._send(200, {**facts, "sha": found.sha, "tags": []})

    def tree(self, repo: str) -> None:
        if (found := self._find(repo)) is not None:
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": _blob_id(data)}
                for name, data in found.files.items()
            ]
            self._send(200, rows)

    def preupload(self, repo: str) -> None:
        if not self._may_write(repo) or (found := self._find(repo)) is None:
            return
        rows = []
        for file in json.loads(self.body)["files"]:
            large = self.hub.large_files and file["path"].endswith(".safetensors")
            mode = "lfs" if large else "regular"
            row = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in found.files and mode == "regular":
                row["oid"] = _blob_id(found.files[file["path"]])
            rows.append(row)
        self._send(200, {"files": rows})

    def lfs_batch(self, repo: str) -> None:
        if not self._may_write(repo):
            return
        rows = []
        for wanted in json.loads(self.body)["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/lfs/{wanted['oid']}"
                verify = {"href": f"{self.hub.url}/lfs-verify/{repo}", "header": {}}
                row["actions"] = {"upload": {"href": href, "header": {}}, "verify": verify}
            rows.append(row)
        self._send(200, {"transfer": "basic", "objects": rows})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._error(422, "content does not have the announced hash")
        self.hub.objects[oid] = self.body
        return self._send(200, b"")

    def lfs_verify(self, repo: str) -> None:
        wanted = json.loads(self.body)
        good = len(self.hub.objects.get(wanted["oid"], b"")) == wanted["size"]
        self._send(200, {}) if good else self._error(422, "size differs")

    def commit(self, repo: str) -> None:
        if not self._may_write(repo) or (found := self._find(repo)) is None:
            return None
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                found.commits.append(value["summary"])
            elif entry["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del found.files[value["path"]]
            else:
                return self._error(400, f"unknown operation {entry['key']}")
        url = f"{self.hub.url}/{repo}/commit/{found.sha}"
        return self._send(200, {"success": True, "commitOid": found.sha, "commitUrl": url})

    def resolve(self, repo: str, name: str) -> None:
        if (found := self._find(repo)) is None:
            return None
        if name not in found.files:
            return self._error(404, "Entry not found", "EntryNotFound")
        data = found.files[name]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": found.sha}
        return self._send(200, data, headers)


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("GET", rf"/api/models/{REPO}", Handler.info),
    ("GET", rf"/api/models/{REPO}/revision/[^/]+", Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/[^/]+", Handler.tree),
    ("POST", rf"/api/models/{REPO}/preupload/[^/]+", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("POST", rf"/lfs-verify/{REPO}", Handler.lfs_verify),
    ("POST", rf"/api/models/{REPO}/commit/[^/]+", Handler.commit),
    ("GET", rf"/{REPO}/resolve/[^/]+/(?P<name>.+)", Handler.resolve),
    ("HEAD", rf"/{REPO}/resolve/[^/]+/(?P<name>.+)", Handler.resolve),
]


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Server(ThreadingHTTPServer):
    """Says nothing of clients that go away, as those that a test kills do."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the stand-in until the block ends."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
