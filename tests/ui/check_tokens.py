"""The page of coloured texts in a real browser: `make test-ui`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser
from tests.support.page_case import ESCAPE, HOSTILE

from heretic.report.page.tokens import tokens_page
from heretic.report.tokens import LEVELS, ColouredText


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_colours_show_and_nothing_acts(
    browser: Browser, tmp_path: Path, theme: str, width: int
) -> None:
    values = tuple(step / LEVELS for step in range(-LEVELS, LEVELS + 1))
    names = (HOSTILE, ESCAPE, "\n", *(f" token{step}" for step in range(len(values) - 3)))
    path = tmp_path / "page.html"
    path.write_text(tokens_page([ColouredText(3, names, values, 1.0, 2)], "a model"), "utf-8")
    said: list[str] = []
    asked: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if theme == "dark" else "light",
    )
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.click("summary")
    colours = page.eval_on_selector_all(
        ".text b", "found => found.map(one => getComputedStyle(one).backgroundColor)"
    )
    found = Axe().run(page)
    wide = page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()
    assert said == []
    assert asked == [path.as_uri()]
    assert len(set(colours)) == 2 * LEVELS + 1
    assert re.fullmatch(r"rgb\(\d+, \d+, \d+\)", colours[0])
    serious = [
        one for one in found.response["violations"] if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert wide
