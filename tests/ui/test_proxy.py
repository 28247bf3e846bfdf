"""A page behind a proxy that encrypts: only for hosts that the user has named."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from heretic.ui.access import Access, hosts_for, proxied_of
from heretic.ui.guard import Guard

NAMED = ["page.test", "localhost", "127.0.0.1", "[::1]"]


@pytest.fixture
def access() -> Access:
    return Access(7860, hosts_for("192.168.0.1", NAMED), proxied_of(NAMED))


def passes(access: Access, host: str, origin: str, kind: str = "websocket") -> bool:
    """Whether the guard lets a request with the cookie through to the page."""
    passed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(_: Any) -> None:
        pass

    cookie = f"{access.cookie}={access.session}"
    headers = {"host": host, "origin": origin, "cookie": cookie}
    scope = {
        "type": kind,
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(Guard(app, access)(scope, receive, send))
    return bool(passed)


@pytest.mark.parametrize("kind", ["websocket", "http"])
def test_a_host_that_was_named_may_be_encrypted(access: Access, kind: str) -> None:
    assert passes(access, "page.test", "https://page.test", kind)
    assert passes(access, "Page.test:8443", "https://page.test:8443", kind)
    assert passes(access, "page.test", "http://page.test", kind)
    assert not passes(access, "page.test", "https://page.test:8443", kind)
    assert not passes(access, "page.test", "https://evil.test", kind)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "192.168.0.1"])
def test_no_other_is(access: Access, host: str) -> None:
    assert passes(access, f"{host}:7860", f"http://{host}:7860")
    assert not passes(access, f"{host}:7860", f"https://{host}:7860")
