"""What a browser sends to the page: prompt sets, and uploads to the Hub."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FilePayload, Locator, expect
from tests.support import convertible, hub_server, page_case, ui_case, ui_pictures
from tests.support.ui_server import serving
from tests.support.ui_tab import PATIENCE, Tab, begin, tab

from heretic.runs.folder import RunFolder
from heretic.system.display import bytes_text
from heretic.ui.uploads import FOLDER

pytestmark = pytest.mark.timeout(900)

KEY = "run-0123456789ab"


def sent(found: Tab, name: str, text: str, place: int = 0) -> None:
    """Choose a file for one of the prompt sets."""
    chosen = found.page.locator("input[type=file]").nth(place)
    chosen.set_input_files(FilePayload(name=name, mimeType="text/plain", buffer=text.encode()))


def test_prompt_sets_are_uploaded_checked_and_shown(browser: Browser, tmp_path: Path) -> None:
    model = ui_case.make_folder(tmp_path)
    with serving(tmp_path, tmp_path / "runs") as server:
        found = tab(browser, server)
        page = found.page
        page.goto(server.opened("/new"))
        page.get_by_role("radio", name="A folder").click()
        page.get_by_label("Folder of the model").fill(str(model))
        page.get_by_text("Own prompt sets").click()
        chooser = page.get_by_role("button", name=re.compile("upload a file")).first
        with page.expect_file_chooser():
            chooser.click()
        sent(found, "wrong.json", "{")
        expect(page.get_by_role("alert")).to_contain_text("wrong.json cannot be read")
        kept = tmp_path / "runs" / FOLDER
        assert list(kept.iterdir()) == []
        failed(found)
        sent(found, "mine <b>.csv", "prompt\nName a <i>river</i>.\nName a lake.\n")
        expect(page.get_by_text("mine <b>.csv: 2 prompts")).to_be_visible()
        expect(page.locator(".prompt").first).to_have_text("Name a <i>river</i>.")
        (file,) = kept.iterdir()
        place = page.get_by_label(re.compile(r"do not trigger.*file, folder or data set"))
        expect(place).to_have_value(str(file))
        found.button("Preview the prompts").click()
        expect(page.get_by_role("heading", name="good: 2 prompts")).to_be_visible()
        found.check(1400)
        page.context.close()


def failed(found: Tab) -> None:
    """A file that the server does not take is told of; the next one is sent as if it were first."""
    found.page.route("**/upload/**", lambda route: route.fulfill(status=413))
    sent(found, "first.txt", "Name a river.\n")
    expect(found.page.get_by_role("alert")).to_contain_text("has not arrived")
    found.page.unroute("**/upload/**")
    (said,) = found.said
    assert "413" in said
    found.said.clear()


def test_an_upload_is_refused_without_a_login_and_private_with_one(
    browser: Browser, tmp_path: Path
) -> None:
    model = ui_case.make_folder(tmp_path, n_trials=1)
    with hub_server.serve() as hub:
        token = tmp_path / "elsewhere" / "token"
        token.parent.mkdir()
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN_PATH": str(token),
            "HF_TOKEN": "",
        }
        with serving(tmp_path, tmp_path / "runs", environment=environment) as server:
            found = tab(browser, server)
            begin(found, server, model)
            expect(found.page.get_by_text("The model is loaded.")).to_be_visible()
            found.button("Upload").click()
            uploaded(found, "a/b/c")
            expect(dialogs(found).get_by_role("alert")).to_contain_text("not a valid repository id")
            uploaded(found, "edited")  # in the same dialog, which has stayed
            expect(dialogs(found)).to_have_count(0)
            expect(found.page.locator(".card", has_text="hf auth login")).to_be_visible()
            token.write_text(hub_server.WRITE_TOKEN)
            found.button("Upload").click()
            uploaded(found, "edited")
            expect(dialogs(found)).to_have_count(0)
            expect(found.page.get_by_text(f"Uploaded to {hub.url}/tester/edited")).to_be_visible()
            assert hub_server.WRITE_TOKEN not in found.page.content()
            found.check(1400)
            found.page.context.close()
        assert hub.repositories["tester/edited"].private


def test_gguf_files_are_made_and_told(browser: Browser, tmp_path: Path) -> None:
    model = ui_case.make_folder(tmp_path, n_trials=1)
    convertible.folder(model)
    with serving(tmp_path, tmp_path / "runs") as server:
        found = tab(browser, server)
        page = found.page
        begin(found, server, model)
        expect(page.get_by_text("The model is loaded.")).to_be_visible()
        found.button("Save").click()
        page.get_by_label("New folder").fill(str(tmp_path / "saved"))
        types = page.get_by_label("Types")
        expect(types).to_be_hidden()
        page.get_by_role("radio", name="GGUF files").click()
        types.fill("none_such")
        found.button("Save").last.click()
        expect(page.locator(".card", has_text="none_such")).to_be_visible()  # the worker knows
        found.button("Save").click()
        page.get_by_label("New folder").fill(str(tmp_path / "saved"))
        page.get_by_role("radio", name="GGUF files").click()
        types.fill("f16")
        found.check(1400, dialog=True)
        found.button("Save").last.click()
        card = page.locator(".card", has_text=f"Saved in {tmp_path / 'saved'}")
        expect(card).to_contain_text(
            "For llama.cpp, in ", timeout=5 * PATIENCE
        )  # converter, checks
        (file,) = (tmp_path / "saved-gguf").glob("*.gguf")
        expect(card).to_contain_text(f"{file.name} ({bytes_text(file.stat().st_size)})")
        expect(card.get_by_role("columnheader", name="F16")).to_be_visible()
        expect(card.get_by_role("rowheader", name="kl_divergence")).to_be_visible()
        found.check(1400)
        page.context.close()


def uploaded(found: Tab, repository: str) -> None:
    """Ask for an upload in the dialog."""
    found.page.get_by_label("Repository").fill(repository)
    expect(found.page.get_by_role("checkbox", name="Private")).to_be_checked()
    found.button("Upload").last.click()


def dialogs(found: Tab) -> Locator:
    return found.page.get_by_role("dialog")


def test_the_table_keeps_its_rows_and_the_focus_while_trials_come_in(
    browser: Browser, tmp_path: Path
) -> None:
    from tests.support.search_case import evaluate, make_study

    from heretic.events import SearchStarted, TrialFinished
    from heretic.runs.events import EventsFile

    folder = RunFolder(page_case.make_run(tmp_path / "runs" / KEY))
    with serving(tmp_path, tmp_path / "runs") as server, folder.lock():
        found = tab(browser, server)
        page = found.page
        page.goto(server.opened(f"/run/{KEY}"))
        rows = page.locator("button.link")
        expect(rows.first).to_be_visible()
        rows.first.focus()
        page.evaluate("window.kept = document.activeElement")
        file = EventsFile(folder.events_path)
        file.write("CommandStarted", {"since": 0.0})
        file.emit(SearchStarted(3, 9, ()))
        study = make_study(folder, n_startup_trials=20)
        study.run(evaluate, 9)
        for done in range(4, 10):
            trial = study.trials[done - 1]
            file.emit(TrialFinished(trial, study.front, done, 9, 1.0, 30.0))
        expect(page.get_by_text("9 of 9 trials")).to_be_visible()
        expect(rows).to_have_count(len(study.front))
        assert page.evaluate("window.kept === document.activeElement")
        drawn = page.get_by_role("img", name="The front of the trials").evaluate(POINTS)
        assert len(drawn) >= len(study.front)
        found.check(1400)
        page.context.close()


POINTS = """
async element => {
    const { echarts } = await import('nicegui-echart')
    const series = echarts.getInstanceByDom(element).getOption().series
    return series.filter(one => ['front', 'chosen'].includes(one.name)).flatMap(one => one.data)
}
"""


def test_pictures_for_the_documents_can_be_taken(browser: Browser, tmp_path: Path) -> None:
    model = ui_case.make_folder(tmp_path, n_trials=2)
    with serving(tmp_path, tmp_path / "runs") as server:
        found = tab(browser, server, 1280)
        begin(found, server, model)
        key = next(path.name for path in (tmp_path / "runs").iterdir() if path.name != FOLDER)
        # Until then the page of the run may offer to load the model, and take that back.
        expect(found.page.get_by_text("The model is loaded.")).to_be_visible()
        ui_pictures.take(found.page, server, key, tmp_path, "Name a colour.")
        found.check(1280)
        found.page.context.close()
    for name in ui_pictures.NAMES:
        assert 5_000 < (tmp_path / name).stat().st_size < ui_pictures.MOST_BYTES
