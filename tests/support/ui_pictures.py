"""Pictures of the page for the documents, in a real browser.

    python -m tests.support.ui_pictures RUN FOLDER QUESTION

RUN is the folder of a run whose model is on this machine, such as the demo's (`heretic demo`). It
is opened, so that nothing else may work on it. Each picture is 1280 wide, light, and below 150 kB.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.support.ui_server import Server, serving

NAMES = ("ui-new.png", "ui-run.png", "ui-chat.png")
SIZE = {"width": 1280, "height": 860}
MOST_BYTES = 150_000
PATIENCE = 600_000
"""Milliseconds for a model on a busy machine."""


def take_form(page: Page, server: Server, path: Path) -> None:
    """Take the picture of the page for a new search."""
    page.goto(server.opened("/new"))
    expect(page.get_by_role("button", name="Start the search")).to_be_visible()
    chosen = page.get_by_role("radio", name="A folder")
    chosen.click()
    expect(chosen).to_be_checked()
    expect(page.get_by_role("button", name="Inspect the model")).to_be_visible()
    page.screenshot(path=path, animations="disabled")


def take(page: Page, server: Server, key: str, target: Path, question: str) -> None:
    """Take the pictures of a run, whose model is loaded if it is not."""
    new, run, chat = (target / name for name in NAMES)
    take_form(page, server, new)
    page.goto(f"{server.base}/run/{key}")
    loading = page.get_by_role("button", name="Load the model", exact=True)
    loaded = page.get_by_text("The model is loaded.")
    expect(loading.or_(loaded).first).to_be_visible()
    if loading.is_visible():
        loading.click()
    expect(loaded).to_be_visible()
    page.get_by_role("heading", name="Trials", exact=True).scroll_into_view_if_needed()
    page.screenshot(path=run, animations="disabled")
    page.get_by_role("link", name="Chat").click()
    page.get_by_label("Message").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".prompt")).to_have_text(question)
    expect(page.get_by_role("button", name="Stop the reply")).to_be_hidden()
    page.screenshot(path=chat, animations="disabled")


def main() -> None:
    """Take the pictures of a run."""
    run, target, question = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), sys.argv[3]
    expect.set_options(timeout=PATIENCE)
    with serving(run.parent, run.parent) as server, sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")  # type: ignore[arg-type]
        take(page, server, run.name, target, question)
        browser.close()


if __name__ == "__main__":
    main()
