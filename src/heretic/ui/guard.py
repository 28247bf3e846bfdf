"""Stands before the whole page: every request and every websocket passes it, static files too.

A page elsewhere, a name that resolves to loopback, and other users of the machine must not reach
anything: the host must be known, the origin must be the page's own, and the token of this start
must have been given. It is plain ASGI, so that no part of the library comes before it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode

from heretic.ui.access import TOKEN, Access

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOGIN = "/login"
MOST_BODY = 8 * 2**20
"""Bytes of a request, such as an uploaded file of prompts."""

MOST_LOGIN = 4096
READING = ("GET", "HEAD")

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-src 'self'; frame-ancestors 'none'"
)
"""The library writes scripts into its pages and compiles templates in the browser. What it must not
do is to ask anything of another host."""

_OWN_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Heretic</title>
<meta name="viewport" content="width=device-width, initial-scale=1">{head}
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 30rem; margin: 10vh auto; padding: 1rem }}
input, button {{ font: inherit; padding: .5rem; box-sizing: border-box; width: 100% }}
button {{ margin: .6rem 0 }}
</style></head><body><main><h1>Heretic</h1>{body}</main></body></html>
"""
_FORM = """<p>{said}</p>
<form method="post" action="{login}">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="off" autofocus required>
<button>Open the page</button></form>"""
ASK = (
    "This page needs the token of the command that opened it. Open the address that "
    "`heretic ui` has printed, or enter what follows `token=` there."
)
WRONG = "That is not the token of this start. Each start of `heretic ui` has a new one."


@dataclass(frozen=True, slots=True)
class Guard:
    """Passes on what may pass.

    Attributes:
        app: What it guards.
    """

    app: App
    access: Access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may not pass, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request = _Request(scope)
        refusal = self._refusal(request)
        if scope["type"] == "websocket":
            if refusal is None and self._is_known(request):
                await self.app(scope, receive, send)
            else:  # before it is accepted: the browser sees status 403
                await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        elif refusal is not None:
            await _answer(send, 403, f"<p>{escape(refusal)}</p>")
        else:
            await self._http(request, receive, send)

    def _refusal(self, request: _Request) -> str | None:
        """Why nobody may ask so, whatever he knows; None if one may."""
        hosts = request.all("host")
        if len(hosts) != 1 or not self.access.knows_host(hosts[0]):
            return "This page does not go by that name. `heretic ui --allow-host NAME` adds one."
        origins = request.all("origin")
        if len(origins) > 1 or (origins and origins[0].lower() not in self._own(hosts[0])):
            return "Requests of other pages are refused."
        if not origins and (request.is_websocket or request.method not in READING):
            return "A request that changes something must name its origin."
        elsewhere = request.first("sec-fetch-site") in ("cross-site", "same-site")
        if elsewhere and not request.is_opening:
            return "Requests of other pages are refused."
        return None

    def _own(self, host: str) -> set[str]:
        """The origins of this page, as asked by that host."""
        schemes = ("http", "https") if self.access.may_be_encrypted(host) else ("http",)
        return {f"{scheme}://{host.lower()}" for scheme in schemes}

    def _is_known(self, request: _Request) -> bool:
        try:
            cookies = [SimpleCookie(text) for text in request.all("cookie")]
        except CookieError:
            return False
        name = self.access.cookie
        return any(name in one and self.access.is_session(one[name].value) for one in cookies)

    async def _http(self, request: _Request, receive: Receive, send: Send) -> None:
        given = [value for name, value in request.query if name == TOKEN]
        if request.scope["path"] == LOGIN and request.method == "POST":
            await self._log_in(receive, send)
        elif given and request.method == "GET":
            right = len(given) == 1 and self.access.is_token(given[0])
            await (self._enter(request, send) if right else _ask(send, WRONG))
        elif not self._is_known(request):
            await _ask(send, ASK)
        elif not _is_small(request.first("content-length")):
            await _answer(send, 413, f"<p>At most {MOST_BODY // 2**20} MiB are taken.</p>")
        else:
            scope = {**request.scope, "headers": request.without_cookie(self.access.cookie)}
            await self.app(scope, _limited(receive), _with_headers(send))

    async def _enter(self, request: _Request, send: Send) -> None:
        """Hand out the cookie and go to the same address without its token.

        A redirect would do where the address is typed. Followed from a file or another page, it
        would come without the cookie, which is for requests of this page alone; this page's own
        refresh is one.
        """
        rest = urlencode([pair for pair in request.query if pair[0] != TOKEN])
        path = "/" + request.scope["path"].lstrip("/\\")  # "//host" would lead elsewhere
        target = escape(path + (f"?{rest}" if rest else ""), quote=True)
        head = f'<meta http-equiv="refresh" content="0;url={target}">'
        body = f'<p><a href="{target}">Go on</a></p>'
        await _answer(send, 200, body, head=head, more=[self._cookie()])

    async def _log_in(self, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > MOST_LOGIN or not message.get("more_body", False):
                break
        found = dict(parse_qsl(body[:MOST_LOGIN].decode("latin-1")))
        if not self.access.is_token(found.get(TOKEN, "").strip()):
            await _ask(send, WRONG)
            return
        await _answer(send, 303, "", more=[self._cookie(), (b"location", b"/")])

    def _cookie(self) -> tuple[bytes, bytes]:
        text = f"{self.access.cookie}={self.access.session}; Path=/; HttpOnly; SameSite=Strict"
        return b"set-cookie", text.encode()


@dataclass(frozen=True, slots=True)
class _Request:
    """A scope, read."""

    scope: Scope

    @property
    def is_websocket(self) -> bool:
        return bool(self.scope["type"] == "websocket")

    @property
    def method(self) -> str:
        return str(self.scope.get("method", "GET"))

    @property
    def query(self) -> list[tuple[str, str]]:
        return parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True)

    @property
    def is_opening(self) -> bool:
        """Whether a link or a bookmark opens a page of its own, which changes nothing."""
        kind = self.first("sec-fetch-mode"), self.first("sec-fetch-dest")
        return self.method == "GET" and kind == ("navigate", "document")

    def all(self, name: str) -> list[str]:
        wanted = name.encode()
        return [value.decode("latin-1") for key, value in self.scope["headers"] if key == wanted]

    def first(self, name: str) -> str:
        return next(iter(self.all(name)), "")

    def without_cookie(self, name: str) -> list[tuple[bytes, bytes]]:
        """The headers without that cookie, which is nobody's business further in."""
        return [
            (key, _without(value, name) if key == b"cookie" else value)
            for key, value in self.scope["headers"]
        ]


def _without(cookies: bytes, name: str) -> bytes:
    parts = (part.strip() for part in cookies.split(b";"))
    return b"; ".join(part for part in parts if not part.startswith(f"{name}=".encode()))


def _is_small(length: str) -> bool:
    return not length or (length.isascii() and length.isdigit() and int(length) <= MOST_BODY)


def _limited(receive: Receive) -> Receive:
    """The same messages, until their bodies are too long: then the client is gone."""
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        return message if total <= MOST_BODY else {"type": "http.disconnect"}

    return limited


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            found = list(message.get("headers", ()))
            named = {key.lower() for key, _ in found}
            added = [*_HEADERS, (b"content-security-policy", POLICY.encode())]
            kind = b"".join(value for key, value in found if key.lower() == b"content-type")
            if kind.startswith(b"text/html"):
                added.append((b"cache-control", b"no-store"))
            message["headers"] = [*found, *(one for one in added if one[0] not in named)]
        await send(message)

    return sending


async def _ask(send: Send, said: str) -> None:
    await _answer(send, 401, _FORM.format(said=escape(said), login=LOGIN))


async def _answer(
    send: Send, status: int, body: str, *, head: str = "", more: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    content = _PAGE.format(head=head, body=body).encode()
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(content)).encode()),
        (b"content-security-policy", _OWN_POLICY.encode()),
        (b"cache-control", b"no-store"),
        *_HEADERS,
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
