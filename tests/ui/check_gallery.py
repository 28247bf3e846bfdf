"""The gallery of shared reports in a real browser: a frame draws, and reaches nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from deploy.gallery import app as gallery
from playwright.sync_api import Browser, Frame, Page
from tests.support import page_case

from heretic.report.page import html
from heretic.report.page.run import read_run

HOSTILE = """<!doctype html><title>hostile</title><body><script>
const seen = [];
try { seen.push(parent.document.title) } catch { seen.push("no parent") }
try { seen.push(document.cookie) } catch { seen.push("no cookies") }
try { localStorage.setItem("a", "b"); seen.push("stored") } catch { seen.push("no storage") }
try { top.location = "http://x.test/" } catch { seen.push("no way out") }
document.body.textContent = seen.join(", ");
</script>"""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The gallery at a free port of loopback, with a report of ours and a hostile one."""
    monkeypatch.setattr(gallery, "REPORTS", tmp_path)
    run = page_case.make_run(tmp_path / "run")
    (tmp_path / "ours.html").write_text(html.page_of_run(read_run(run)), encoding="utf-8")
    (tmp_path / "hostile.html").write_text(HOSTILE, encoding="utf-8")
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
    assert text.inner_text() == "no parent, no cookies, no storage, no way out"
    assert page.url == f"{address}/show/hostile"
    page.goto(f"{address}/report/hostile")  # by itself, its origin is still nobody's
    assert "no cookies, no storage" in page.locator("body").inner_text()
    context.close()
