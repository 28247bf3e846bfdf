"""The gallery of shared reports in a real browser: a frame draws, and reaches nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from deploy.gallery import app as gallery
from playwright.sync_api import Browser, Frame, Page
from tests.support import page_case
from tests.support.loopback import Place, running

from heretic.report.page import html
from heretic.report.page.run import read_run

HOSTILE = """<!doctype html><title>hostile</title><body>
<img src="ELSEWHERE/tag.svg"><link rel="stylesheet" href="ELSEWHERE/style.css">
<iframe src="ELSEWHERE/frame"></iframe><script>
const seen = [];
try { seen.push(parent.document.title) } catch { seen.push("no parent") }
try { seen.push(document.cookie) } catch { seen.push("no cookies") }
try { localStorage.setItem("a", "b"); seen.push("stored") } catch { seen.push("no storage") }
try { if (top !== self) top.location = "http://x.test/" } catch { seen.push("no way out") }
const image = new Image();
const drawn = new Promise(done => {
    image.onload = () => done("an image");
    image.onerror = () => done("no image");
});
image.src = "ELSEWHERE/image.svg";
const sent = fetch("ELSEWHERE/fetch", {mode: "no-cors"}).then(() => "sent", () => "no fetch");
navigator.sendBeacon("ELSEWHERE/beacon", "x");
Promise.all([sent, drawn]).then(found => {
    document.body.textContent = [...seen, ...found].join(", ");
});
</script>"""
LEAVING = """<!doctype html><title>leaving</title><script>location = "ELSEWHERE/left"</script>"""


class Elsewhere(BaseHTTPRequestHandler):
    """Notes what reaches it, and answers with an image that anyone may read."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answer, and note the path."""
        self.asked.append(self.path)
        body = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'
        self.send_response(200)
        self.send_header("Content-Type", "image/svg+xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """As `do_GET`."""
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of a server that a report must not reach."""
    Elsewhere.asked.clear()
    place = Place()
    with running(place, Elsewhere):
        yield place.url


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: str) -> Iterator[str]:
    """The gallery at a free port of loopback, with a report of ours and a hostile one."""
    monkeypatch.setattr(gallery, "REPORTS", tmp_path)
    run = page_case.make_run(tmp_path / "run")
    (tmp_path / "ours.html").write_text(html.page_of_run(read_run(run)), encoding="utf-8")
    for name, content in (("hostile", HOSTILE), ("leaving", LEAVING)):
        page = content.replace("ELSEWHERE", elsewhere)
        (tmp_path / f"{name}.html").write_text(page, encoding="utf-8")
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(gallery.app, log_level="warning"))
    thread = Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def framed(page: Page) -> Frame:
    element = page.wait_for_selector("iframe")
    assert element is not None
    frame = element.content_frame()
    assert frame is not None
    return frame


def test_a_report_is_drawn_in_its_frame(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 900})
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    assert Axe().run(page).violations_count == 0
    page.get_by_role("link", name="Heretic").click()
    frame = framed(page)
    frame.wait_for_function("document.body.dataset.drawn !== undefined")
    assert frame.locator(".chart svg").count() > 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert said == []
    assert all(url.startswith(address) for url in asked)
    context.close()


def test_a_hostile_report_reaches_nothing(browser: Browser, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{address}/show/hostile")
    frame = framed(page)
    text = frame.locator("body")
    text.get_by_text("no parent").wait_for()
    reached = "no parent, no cookies, no storage, no way out, no fetch, no image"
    assert text.inner_text() == reached
    assert page.url == f"{address}/show/hostile"
    page.goto(f"{address}/report/hostile")  # by itself, its origin is still nobody's
    page.get_by_text("no fetch, no image").wait_for()
    assert "no cookies, no storage" in page.locator("body").inner_text()
    context.close()
    assert Elsewhere.asked == []


def test_a_frame_cannot_lead_elsewhere(browser: Browser, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    with page.expect_console_message(lambda message: "frame-src" in message.text):
        page.goto(f"{address}/show/leaving")
    context.close()
    assert Elsewhere.asked == []
