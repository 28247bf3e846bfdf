"""The page of a run in a real browser: `make test-ui`.

It takes a Chromium on the PATH (Debian's package is `chromium`); nothing is downloaded, and no
request may leave the page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page
from tests.support import page_case

from heretic.report.page import html
from heretic.report.page.charts import figures_of
from heretic.report.page.run import read_run


@dataclass
class Opened:
    """A page, with what its console said and what it asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def opened(browser: Browser, path: Path, theme: str, width: int) -> Opened:
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if theme == "dark" else "light",
    )
    found = Opened(context.new_page())
    found.page.on("console", lambda message: found.said.append(message.text))
    found.page.on("pageerror", lambda error: found.said.append(str(error)))
    found.page.on("dialog", lambda dialog: found.said.append(f"dialog {dialog.message}"))
    found.page.on("request", lambda request: found.asked.append(request.url))
    found.page.goto(path.as_uri())
    found.page.wait_for_function("document.body.dataset.drawn !== undefined")
    return found


@pytest.fixture(scope="session")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose names, prompts and replies are hostile."""
    place = tmp_path_factory.mktemp("page")
    run = page_case.make_run(place / "run")
    path = place / "report.html"
    path.write_text(html.page_of_run(read_run(run)), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_in_a_browser(browser: Browser, page_path: Path, theme: str, width: int) -> None:
    found = opened(browser, page_path, theme, width)
    page = found.page
    assert found.said == []
    assert found.asked == [page_path.as_uri()]
    names = [figure.name for figure in figures_of(read_run(page_path.parent / "run"))]
    for name in names:
        drawn = page.locator(f'[id="figure-{name}"] .chart svg')
        assert drawn.count() == 1
        box = drawn.bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 50
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    serious = [
        f"{found['id']}: {found['nodes'][0]['html'][:200]}"
        for found in Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
    ]
    assert serious == []
    page.context.close()


def test_a_wide_table_shows_that_it_goes_on(browser: Browser, page_path: Path) -> None:
    """A shade at its side, which what moves with the table covers where nothing follows."""
    page = opened(browser, page_path, "light", 400).page
    table = page.locator("#replies .scroll").first
    table.evaluate("element => element.querySelector('table').style.minWidth = '60rem'")

    def right() -> int:
        """How dark the right edge is, below the text of the first line."""
        content = table.screenshot(animations="disabled")
        with Image.open(BytesIO(content)) as picture:
            edge = picture.convert("L").crop((picture.width - 2, 2, picture.width - 1, 4))
            return min(edge.tobytes())

    assert right() < 235
    table.evaluate("element => element.scrollLeft = element.scrollWidth")
    assert right() > 250
    page.context.close()


def test_replies_can_be_filtered(browser: Browser, page_path: Path) -> None:
    page = opened(browser, page_path, "light", 1000).page
    rows = page.locator("details.exchange")
    visible = page.locator("details.exchange:visible")
    count = rows.count()
    assert visible.count() == count > 1
    page.get_by_label("verdicts differ").check()
    assert visible.count() == 1
    page.get_by_label("verdicts differ").uncheck()
    page.locator("select").select_option("refusal")
    assert visible.count() == 1
    page.locator("select").select_option("any")
    page.get_by_label("text").fill("A PLAIN one")
    assert visible.count() == 1
    assert page.locator("output").inner_text() == "1 prompts"
    page.keyboard.press("Enter")
    assert page.url == page_path.as_uri()
    page.context.close()


def test_a_figure_follows_the_theme(browser: Browser, page_path: Path) -> None:
    page = opened(browser, page_path, "light", 1000).page
    label = page.locator('[id="figure-growth"] svg text').first
    before = label.evaluate("element => element.getAttribute('fill')")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "before => document.querySelector('[id=figure-growth] svg text')"
        ".getAttribute('fill') !== before",
        arg=before,
    )
    page.context.close()
