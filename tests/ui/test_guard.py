"""Nothing of the page is answered to those who may not ask; a real server is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

pytest.importorskip("nicegui")

from tests.support import page_case
from tests.support.ui_server import Server, serving

RUN = "name-0123456789ab"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("ui")
    page_case.make_run(place / "runs" / RUN)
    with serving(place, place / "runs") as found:
        yield found


@pytest.fixture(scope="module")
def cookie(server: Server) -> str:
    return server.cookie()


@pytest.fixture(scope="module")
def static(server: Server, cookie: str) -> str:
    """Address of one of the library's own files."""
    page = server.ask("/", {"Cookie": cookie}).body
    found = re.search(r'src="(/_nicegui/[^"]*/static/nicegui\.js)"', page)
    assert found
    assert server.ask(found[1], {"Cookie": cookie}).status == 200
    return found[1]


POLLING = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
PLACES = ["/", "/new", f"/run/{RUN}", f"/run/{RUN}/chat/0", "/reports/a.html", POLLING, "/nowhere"]


@pytest.mark.parametrize("path", [*PLACES, "static"])
def test_without_the_token_only_a_login_page_is_answered(server: Server, static: str, path: str):
    answer = server.ask(static if path == "static" else path)
    assert answer.status == 401
    assert 'action="/login"' in answer.body
    assert "nicegui" not in answer.body
    assert RUN not in answer.body
    assert "set-cookie" not in answer.headers


def test_the_token_opens_the_page_and_is_replaced_by_a_cookie(server: Server):
    answer = server.ask(f"/?token={server.token}")
    assert answer.status == 200
    assert server.token not in answer.body
    given = answer.headers["set-cookie"]
    assert server.token not in given
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(given.split("; "))
    page = server.ask("/", {"Cookie": given.partition(";")[0]})
    assert page.status == 200
    assert "nicegui" in page.body
    assert server.token not in page.body


@pytest.mark.parametrize("change", ["wrong", "prefix", "empty", "twice", "odd"])
def test_another_token_opens_nothing(server: Server, change: str):
    tokens = {
        "wrong": ["x" * len(server.token)],
        "prefix": [server.token[:-1]],
        "empty": [""],
        "twice": [server.token, "x"],
        "odd": ["\u00e4\0"],
    }[change]
    answer = server.ask(f"/?{urlencode([('token', one) for one in tokens])}")
    assert answer.status == 401
    assert "set-cookie" not in answer.headers


def test_another_cookie_opens_nothing(server: Server, cookie: str):
    name, _, value = cookie.partition("=")
    for wrong in (f"{name}={value[:-1]}", f"{name}={server.token}", f"x{cookie}", f"{name}="):
        assert server.ask("/", {"Cookie": wrong}).status == 401


def test_each_start_has_a_token_of_its_own(server: Server, tmp_path: Path):
    with serving(tmp_path, tmp_path) as other:
        assert other.token != server.token
        assert other.ask("/", {"Cookie": server.cookie()}).status == 401


HOSTS = [
    "evil.test",
    "evil.test:{port}",
    "127.0.0.1.evil.test:{port}",
    "localhost.evil.test",
    "evil@127.0.0.1:{port}",
    "127.0.0.1:{port}/evil",
    "",
    "192.168.0.1:{port}",
]


@pytest.mark.parametrize("host", HOSTS)
def test_other_hosts_are_refused_with_cookie_and_token(server: Server, cookie: str, host: str):
    named = host.format(port=server.port)
    for path in ("/", f"/?token={server.token}", POLLING):
        assert server.ask(path, {"Host": named, "Cookie": cookie}).status in (400, 403)
    headers = {"Host": named, "Cookie": cookie, "Origin": f"http://{named}"}
    assert server.shake_hands(headers) in (400, 403)


def test_two_hosts_are_refused(server: Server, cookie: str):
    hosts = [f"127.0.0.1:{server.port}", "evil.test"]
    assert server.ask("/", {"Host": hosts, "Cookie": cookie}).status in (400, 403)


def test_loopback_goes_by_its_names(server: Server, cookie: str):
    for host in ("localhost", "LOCALHOST", "127.0.0.1", "[::1]"):
        headers = {"Host": f"{host}:{server.port}", "Cookie": cookie}
        assert server.ask("/", headers).status == 200


ORIGINS = ["http://evil.test", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}", ""]


@pytest.mark.parametrize("origin", ORIGINS)
def test_other_origins_are_refused(server: Server, cookie: str, origin: str):
    headers = {"Cookie": cookie, "Origin": origin.format(port=server.port)}
    assert server.ask("/", headers).status == 403
    assert server.ask(POLLING, headers, "POST", b"40").status == 403
    assert server.ask("/login", headers, "POST", f"token={server.token}".encode()).status == 403
    assert server.shake_hands(headers) == 403


def test_a_websocket_needs_cookie_and_origin(server: Server, cookie: str):
    origin = {"Origin": server.base}
    assert server.shake_hands({"Cookie": cookie, **origin}) == 101
    assert server.shake_hands(origin) == 403
    assert server.shake_hands({"Cookie": cookie}) == 403
    assert server.shake_hands({"Cookie": cookie + "x", **origin}) == 403


def test_what_changes_something_needs_an_origin(server: Server, cookie: str):
    assert server.ask(POLLING, {"Cookie": cookie}, "POST", b"40").status == 403


def test_browsers_say_where_a_request_comes_from(server: Server, cookie: str):
    inside = {"Cookie": cookie, "Sec-Fetch-Site": "cross-site"}
    # A page on another port of this host is of the same site.
    assert server.ask("/", {**inside, "Sec-Fetch-Site": "same-site"}).status == 403
    assert server.ask("/", {**inside, "Sec-Fetch-Dest": "iframe"}).status == 403
    link = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert server.ask("/", {**inside, **link}).status == 200
    assert server.ask(POLLING, {**inside, **link}, "POST", b"40").status == 403


def test_the_login_page_takes_the_token(server: Server):
    origin = {"Origin": server.base, "Content-Type": "application/x-www-form-urlencoded"}
    body = urlencode({"token": f" {server.token} "}).encode()
    answer = server.ask("/login", origin, "POST", body)
    assert answer.status == 303
    assert answer.headers["location"] == "/"
    given = answer.headers["set-cookie"].partition(";")[0]
    assert server.ask("/", {"Cookie": given}).status == 200
    for wrong in (b"token=x", b"", b"token=" + b"x" * 10_000):
        refused = server.ask("/login", origin, "POST", wrong)
        assert refused.status == 401
        assert "set-cookie" not in refused.headers


@pytest.mark.parametrize("path", ["//evil.test/", "/\\evil.test/", "/new"])
def test_the_way_to_the_page_stays_on_this_host(server: Server, path: str):
    answer = server.ask(f"{path}?trial=1&token={server.token}")
    found = re.search(r'content="0;url=([^"]*)"', answer.body)
    assert found
    assert found[1].startswith("/")
    assert not found[1].startswith(("//", "/\\"))
    assert found[1].endswith("?trial=1")


def test_requests_have_a_size(server: Server, cookie: str):
    headers = {"Cookie": cookie, "Origin": server.base, "Content-Length": str(2**40)}
    assert server.ask(POLLING, headers, "POST", b"").status == 413


def test_every_page_forbids_what_it_does_not_need(server: Server, cookie: str, static: str):
    for path in ("/", static, "/nowhere"):
        headers = server.ask(path, {"Cookie": cookie}).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert not re.search(r"https?:|\*", policy)
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "key", ["..", "..%2f..", "%2fetc", "name-0123456789ab%2f..", "a%00b", "x" * 300]
)
def test_only_runs_of_the_list_are_shown(server: Server, cookie: str, key: str):
    answer = server.ask(f"/run/{key}", {"Cookie": cookie})
    assert "manifest" not in answer.body
    assert answer.status in (200, 404)
    assert answer.status == 404 or "No such run" in answer.body


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "a" * 32, "../x", ".html"])
def test_only_reports_that_were_made_are_answered(server: Server, cookie: str, name: str):
    assert server.ask(f"/reports/{name}", {"Cookie": cookie}).status == 404


def test_the_token_is_in_no_log(server: Server):
    server.ask(f"/?token={server.token}")
    found = [path for path in server.folder.rglob("*") if path.is_file()]
    assert found
    assert not [path for path in found if server.token.encode() in path.read_bytes()]


def test_the_environment_moves_nothing(tmp_path: Path):
    elsewhere = {
        "NICEGUI_HOST": "0.0.0.0",
        "NICEGUI_PORT": "1",
        "NICEGUI_REDIS_URL": "redis://127.0.0.1:1",
        "NICEGUI_STORAGE_PATH": str(tmp_path / "kept"),
        "UVICORN_HOST": "0.0.0.0",
        "FORWARDED_ALLOW_IPS": "*",
    }
    with serving(tmp_path, tmp_path, environment=elsewhere) as server:
        cookie = server.cookie()
        assert server.ask("/", {"Cookie": cookie}).status == 200
        forwarded = {"Cookie": cookie, "X-Forwarded-Host": "evil.test"}
        assert "evil.test" not in server.ask("/", forwarded).body
        listening = Path(f"/proc/{server.process.pid}/net/tcp")
        if listening.exists():
            rows = [line.split()[1:4:2] for line in listening.read_text().splitlines()]
            place = f"{server.port:04X}"
            ours = [row[0] for row in rows if row[0].endswith(f":{place}") and row[1]]
            assert f"0100007F:{place}" in ours
            assert f"00000000:{place}" not in ours
    assert not (tmp_path / "kept").exists()
    assert not (tmp_path / ".nicegui").exists()


def test_an_address_in_use_is_told(server: Server, tmp_path: Path):
    from heretic.errors import HereticError
    from heretic.ui.server import _listener

    with pytest.raises(HereticError, match=f"port {server.port}"):
        _listener("127.0.0.1", server.port)
