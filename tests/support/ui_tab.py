"""A tab of a real browser that shows the page, and what every page has to keep to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page

from tests.support import ui_case
from tests.support.ui_server import Server, serving

PATIENCE = 60_000
"""Milliseconds for what a busy machine takes seconds for."""


@dataclass
class Tab:
    """A tab, with what its console said and where its requests went."""

    page: Page
    said: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def check(self, width: int, *, dialog: bool = False) -> None:
        """What holds for every page at every time.

        Below a dialog lies a dark layer, which axe takes for the background of its buttons.
        """
        assert self.said == []
        assert self.elsewhere == []
        assert self.page.evaluate("document.documentElement.scrollWidth") <= width
        options = {"rules": {"color-contrast": {"enabled": not dialog}}}
        serious = [
            f"{found['id']}: {found['nodes'][0]}"
            for found in Axe().run(self.page, options=options).response["violations"]
            if found["impact"] in ("serious", "critical")
        ]
        assert serious == []


def tab(browser: Browser, server: Server, width: int = 1400, theme: str = "light") -> Tab:
    """A tab of a browser of its own, without a cookie."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if theme == "dark" else "light",
    )
    context.set_default_timeout(PATIENCE)
    return watched(context.new_page(), server)


def watched(page: Page, server: Server) -> Tab:
    found = Tab(page)
    page.on("console", lambda message: found.said.append(message.text))
    page.on("pageerror", lambda error: found.said.append(str(error)))
    page.on("dialog", lambda dialog: found.said.append(f"dialog {dialog.message}"))

    def asked(url: str) -> None:
        if not url.startswith((server.base, server.base.replace("http", "ws"), "data:")):
            found.elsewhere.append(url)

    page.on("request", lambda request: asked(request.url))
    page.on("websocket", lambda socket: asked(socket.url))
    return found


@contextmanager
def place_with(place: Path, **values: Any) -> Iterator[tuple[Server, Path]]:
    """A server in a folder with a tiny model, whose path comes too."""
    model = ui_case.make_folder(place, **values)
    with serving(place, place / "runs") as server:
        yield server, model


def configure(found: Tab, server: Server, model: Path, trials: int | None = None) -> None:
    """Fill in the form for a new search."""
    found.page.goto(server.address)
    found.page.get_by_role("link", name="New search").click()
    found.page.get_by_role("radio", name="A folder").click()
    found.page.get_by_label("Folder of the model").fill(str(model))
    if trials is not None:
        found.page.get_by_label("Trials", exact=True).fill(str(trials))


def begin(found: Tab, server: Server, model: Path, trials: int | None = None) -> None:
    """Begin a search and wait for the page of its run."""
    configure(found, server, model, trials)
    found.button("Start the search").click()
    found.page.wait_for_url("**/run/**")
