"""The page `heretic ui` in a real browser, on a tiny model, with a real worker: `make test-ui`."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.support import page_case
from tests.support.ui_server import Server, serving
from tests.support.ui_tab import PATIENCE, begin, configure, place_with, tab, watched

from heretic.report.page.run import read_run
from heretic.runs.folder import RunFolder

HOSTILE = "hostile-0123456789ab"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that shows a finished run whose texts are hostile."""
    place = tmp_path_factory.mktemp("shown")
    page_case.make_run(place / "runs" / HOSTILE)
    with serving(place, place / "runs") as server:
        yield server


def test_login_with_the_token_alone(browser: Browser, shown: Server) -> None:
    found = tab(browser, shown, 400)
    found.page.goto(f"{shown.base}/new")
    found.page.get_by_label("Token").fill("wrong")
    found.page.keyboard.press("Enter")
    expect(found.page.get_by_text("not the token of this start")).to_be_visible()
    found.said.clear()  # the browser tells of the status 401
    found.page.get_by_label("Token").fill(shown.token)
    found.button("Open the page").click()
    expect(found.page.get_by_role("heading", name="Runs")).to_be_visible()
    assert shown.token not in found.page.url
    found.check(400)
    found.page.context.close()


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_views(browser: Browser, shown: Server, theme: str, width: int) -> None:
    found = tab(browser, shown, width, theme)
    page = found.page
    page.goto(shown.address)
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    assert shown.token not in page.url
    views = {
        "/": "3 of 3",
        "/new": "Start the search",
        f"/run/{HOSTILE}": "What it edits",
        f"/run/{HOSTILE}/chat/1": "Strength of the edit",
        "/run/nothing": "There is no run",
    }
    for path, text in views.items():
        page.goto(f"{shown.base}{path}")
        expect(page.get_by_text(text).first).to_be_visible()
        found.check(width)
    page.context.close()


def test_what_models_write_is_text(browser: Browser, shown: Server) -> None:
    found = tab(browser, shown)
    found.page.goto(shown.opened(f"/run/{HOSTILE}"))
    replies = found.page.locator(".reply")
    expect(replies.first).to_contain_text("<script>alert(1)</script><img src=http://x.test")
    assert found.page.locator("img").count() == 0
    found.check(1400)
    found.page.context.close()


def test_a_click_on_a_point_shows_its_trial(browser: Browser, shown: Server) -> None:
    found = tab(browser, shown)
    page = found.page
    page.goto(shown.opened(f"/run/{HOSTILE}"))
    expect(page.get_by_role("heading", name="What it edits")).to_be_visible()
    chart = page.get_by_role("img", name="The front of the trials")
    place = chart.evaluate(
        """async element => {
            const { echarts } = await import('nicegui-echart')
            const chart = echarts.getInstanceByDom(element)
            const front = chart.getOption().series.find(one => one.name === 'front')
            const point = front.data[0]
            return [...chart.convertToPixel('grid', point.slice(0, 2)), point[2]]
        }"""
    )
    chart.click(position={"x": place[0], "y": place[1]})
    heading = page.get_by_role("heading", name=f"Trial {place[2]} (")
    expect(heading).to_be_visible()
    expect(page).to_have_url(re.compile(f"trial={place[2]}$"))
    page.reload()
    expect(heading).to_be_visible()
    found.check(1400)
    page.context.close()


def test_another_trial_is_chosen_before_the_charts_are_ready(
    browser: Browser, shown: Server
) -> None:
    """A chart that leaves the page before it is ready raises an error in the browser."""
    found = tab(browser, shown)
    page = found.page
    page.add_init_script(
        """const own = window.setTimeout
        window.setTimeout = (work, after, ...given) => own(work, after || 2000, ...given)"""
    )
    page.goto(shown.opened(f"/run/{HOSTILE}"))
    trials = page.locator("table button.link")
    for chosen in (trials.first, trials.last):
        chosen.click()
        name = re.compile(f"^{re.escape(chosen.inner_text())}$", re.IGNORECASE)
        expect(page.get_by_role("heading", name=name)).to_be_visible()
    lines = page.get_by_role("img", name="ablation weight over layers")
    expect(lines.locator("canvas")).to_be_visible()
    found.check(1400)
    page.context.close()


def test_the_report_is_a_document_without_rights(browser: Browser, shown: Server) -> None:
    found = tab(browser, shown)
    page = found.page
    page.goto(shown.opened(f"/run/{HOSTILE}"))
    found.button("Report").click()
    page.wait_for_url("**/report/**")
    frame = page.frame_locator("iframe.report")
    expect(frame.get_by_role("heading", name="The front")).to_be_visible()
    expect(frame.locator("#figure-front svg").first).to_be_visible()
    inner = next(one for one in page.frames if "/reports/" in one.url)
    assert inner.evaluate("window.origin") == "null"
    found.check(1400)
    page.context.close()


def test_the_whole_job(browser: Browser, tmp_path: Path) -> None:
    with place_with(tmp_path) as (server, model):
        found = tab(browser, server)
        page = found.page
        configure(found, server, model)
        found.button("Inspect the model").click()
        expect(page.get_by_role("heading", name="What would be edited")).to_be_visible()
        expect(page.get_by_text("It fits.")).to_be_visible()
        found.button("Preview the prompts").click()
        expect(page.get_by_role("heading", name="bad: 8 prompts")).to_be_visible()
        found.check(1400)
        found.button("Start the search").click()
        page.wait_for_url("**/run/**")
        expect(page.get_by_text("The model is loaded.")).to_be_visible()
        expect(page.get_by_text("4 of 4 trials")).to_be_visible()

        found.button("Sample replies").click()
        expect(page.locator(".card .reply").first).to_be_visible()
        said, scores = page.locator(".card").nth(1), page.get_by_text("Scores, with 95% intervals")
        places = said.bounding_box(), scores.bounding_box()
        assert places[0] is not None
        assert places[1] is not None
        assert places[0]["y"] < places[1]["y"]  # where it was asked for, above what was known
        found.button("Score again").click()
        page.get_by_label("First prompts of each set").fill("2")
        found.button("Score").click()
        card = page.locator(".card", has_text="the first 2")
        expect(
            card.get_by_role("cell", name="0/2").or_(card.get_by_text("/2 [")).first
        ).to_be_visible()
        found.button("Save").click()
        page.get_by_label("New folder").fill(str(tmp_path / "saved"))
        found.button("Save").last.click()
        expect(page.get_by_text(f"Saved in {tmp_path / 'saved'}")).to_be_visible()
        assert (tmp_path / "saved" / "config.json").is_file()
        found.check(1400)

        page.get_by_role("link", name="Chat").click()
        page.get_by_label("Message").fill("Hello <b>there</b>")
        page.keyboard.press("Enter")
        expect(page.locator(".prompt")).to_have_text("Hello <b>there</b>")
        expect(found.button("Stop the reply")).to_be_hidden()
        expect(found.button("Send")).to_be_enabled()
        other = watched(page.context.new_page(), server)  # a second tab knows the same
        other.page.goto(page.url)
        expect(other.page.locator(".prompt")).to_have_text("Hello <b>there</b>")
        assert other.page.locator(".reply").all_inner_texts() == (
            page.locator(".reply").all_inner_texts()
        )
        found.check(1400)
        other.check(1400)
        page.context.close()
        run = next((tmp_path / "runs").iterdir())
        assert len(read_run(run).trials) == 4
    assert not RunFolder(run).is_locked


def test_a_search_outlives_its_tab_and_two_tabs_agree(browser: Browser, tmp_path: Path) -> None:
    with place_with(tmp_path, n_trials=400, n_startup_trials=400) as (server, model):
        found = tab(browser, server)
        begin(found, server, model)
        address = found.page.url
        expect(found.button("Pause")).to_be_visible()
        second = watched(found.page.context.new_page(), server)
        second.page.goto(address)
        expect(second.page.get_by_text(re.compile(r"[1-9]\d* of 400 trials"))).to_be_visible()
        second.button("Pause").click()
        expect(found.page.get_by_text("The search is paused.")).to_be_visible()
        expect(found.page.locator(".state")).to_have_text("paused")
        found.page.reload()
        expect(found.page.locator(".state")).to_have_text("paused")
        count = found.page.get_by_text("of 400 trials").inner_text()
        expect(second.page.get_by_text(count)).to_be_visible()
        found.check(1400)

        third = watched(found.page.context.new_page(), server)  # a second start is refused
        configure(third, server, model, 9)
        third.button("Start the search").click()
        expect(third.page.get_by_role("alert")).to_contain_text("on one run at a time")
        third.check(1400)

        found.page.context.close()  # all tabs
        again = tab(browser, server, 400)
        again.page.goto(server.opened(urlsplit(address).path))
        expect(again.page.locator(".state")).to_have_text("paused")
        again.button("Resume").click()
        expect(again.page.locator(".state")).to_have_text("searching")
        again.button("Stop").click()
        expect(again.page.get_by_text("The search has ended (interrupted)")).to_be_visible()
        again.check(400)
        again.page.context.close()


def test_a_killed_worker_is_shown_and_goes_on(browser: Browser, tmp_path: Path) -> None:
    with place_with(tmp_path, n_trials=400, n_startup_trials=400) as (server, model):
        found = tab(browser, server)
        begin(found, server, model)
        expect(found.page.get_by_text(re.compile(r"[1-9]\d* of 400 trials"))).to_be_visible()
        os.kill(_worker_of(server), signal.SIGKILL)
        expect(found.page.get_by_text("The worker has ended unexpectedly")).to_be_visible()
        expect(found.page.locator(".state")).to_have_text("unfinished")
        run = next((tmp_path / "runs").iterdir())
        kept = len(read_run(run).trials)
        assert kept > 0
        found.check(1400)
        found.page.get_by_label("Trials", exact=True).fill(str(kept + 2))
        found.button("Go on with the search").click()
        expect(found.page.get_by_text("The model is loaded.")).to_be_visible()
        assert len(read_run(run).trials) >= kept + 2
        found.check(1400)
        found.page.context.close()


def _worker_of(server: Server) -> int:
    """The process that the server has started."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    (pid,) = map(int, children.read_text().split())
    return pid


def test_the_end_of_the_server_ends_the_search_after_its_batch(
    browser: Browser, tmp_path: Path
) -> None:
    with place_with(tmp_path, n_trials=400, n_startup_trials=400) as (server, model):
        found = tab(browser, server)
        begin(found, server, model)
        expect(found.page.get_by_text(re.compile(r"[1-9]\d* of 400 trials"))).to_be_visible()
        worker = _worker_of(server)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE / 1000) == 0
        found.page.context.close()
    assert not Path(f"/proc/{worker}").exists()
    run = RunFolder(next((tmp_path / "runs").iterdir()))
    assert not run.is_locked
    assert run.events_path.read_text().splitlines()[-1].count("CommandEnded") == 1
    assert run.read_trials()


def test_a_run_of_another_process_is_shown_live_with_its_controls_off(
    browser: Browser, tmp_path: Path
) -> None:
    from tests.support.search_case import evaluate, make_study

    from heretic.events import SearchStarted, TrialFinished, TrialStarted
    from heretic.runs.events import EventsFile

    path = page_case.make_run(tmp_path / "runs" / HOSTILE)
    folder = RunFolder(path)
    with serving(tmp_path, tmp_path / "runs") as server, folder.lock():
        found = tab(browser, server)
        found.page.goto(server.opened(f"/run/{HOSTILE}"))
        expect(found.page.get_by_text("Another process works on this run")).to_be_visible()
        for name in ("Go on with the search", "Load the model", "Pause", "Resume", "Stop"):
            expect(found.button(name)).to_be_hidden()
        expect(found.page.get_by_text("3 of 3 trials")).to_be_visible()
        file = EventsFile(folder.events_path)
        file.write("CommandStarted", {"since": 0.0})
        file.emit(SearchStarted(3, 6, ()))
        study = make_study(folder)
        study.run(evaluate, 4)
        last = study.trials[-1]
        file.emit(TrialStarted(last.number, 3, 6))
        file.emit(TrialFinished(last, study.front, 4, 6, 1.0, 30.0))
        expect(found.page.get_by_text("4 of 6 trials")).to_be_visible()
        expect(found.page.get_by_text(re.compile("about .* left"))).to_be_visible()
        found.check(1400)
        found.page.context.close()


def reach(page: Page, name: str) -> None:
    """Press Tab until what has the focus goes by that name.

    What is drawn later than the heading is awaited: until then, Tab finds other things. Past the
    last of them the page's body has the focus, which holds the text of all.
    """
    for _ in range(200):
        page.keyboard.press("Tab")
        focus = page.locator("*:focus:not(body)")
        if focus.count() and name in focus.evaluate(
            "one => one.innerText + (one.getAttribute('aria-label') || '')"
        ):
            return
    raise AssertionError(f"Tab does not reach {name}")


def test_with_the_keyboard_alone(browser: Browser, shown: Server) -> None:
    found = tab(browser, shown)
    page = found.page
    page.goto(shown.address)
    expect(page.get_by_role("link", name="onerror")).to_be_visible()
    reach(page, "onerror")  # the run, by the name of its model
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="What it edits")).to_be_visible()
    expect(page.get_by_role("button", name="trial 1 (")).to_be_visible()
    reach(page, "trial 1 (")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Trial 1 (")).to_be_visible()
    expect(page.get_by_text("More about this run")).to_be_visible()
    reach(page, "More about this run")
    page.keyboard.press("Enter")
    expect(page.get_by_text("commands ran for")).to_be_visible()
    found.check(1400)
    page.context.close()


def test_the_focus_stays_when_a_list_grows(browser: Browser, tmp_path: Path) -> None:
    page_case.make_run(tmp_path / "runs" / "first")
    with serving(tmp_path, tmp_path / "runs") as server:
        found = tab(browser, server)
        page = found.page
        page.goto(server.address)
        first = page.get_by_role("checkbox", name="Compare first")
        expect(first).to_be_visible()
        reach(page, "Compare first")
        expect(found.button("Compare the chosen runs")).to_be_hidden()
        page_case.make_run(tmp_path / "runs" / "second")
        expect(page.get_by_role("checkbox", name="Compare second")).to_be_visible()
        expect(first).to_be_focused()
        page.keyboard.press("Space")
        reach(page, "Compare second")
        page.keyboard.press("Space")
        reach(page, "Compare the chosen runs")
        page.keyboard.press("Enter")
        page.wait_for_url("**/report/**")
        found.check(1400)
        page.context.close()


def test_wrong_inputs_say_what_to_do(browser: Browser, shown: Server) -> None:
    found = tab(browser, shown, 400)
    page = found.page
    page.goto(shown.opened("/new"))
    alert = page.get_by_role("alert")
    page.get_by_role("radio", name="A folder").click()
    found.button("Start the search").click()
    expect(alert).to_contain_text("Choose the model's folder")
    page.get_by_label("Folder of the model").fill("/etc")
    found.button("Start the search").click()
    expect(alert).to_contain_text("heretic ui --folder PATH")
    page.get_by_role("radio", name="A model on the Hub").click()
    page.get_by_label("OWNER/NAME on the Hub").fill("a/b/c")
    found.button("Inspect the model").click()
    expect(alert).to_contain_text("It should be OWNER/NAME")
    page.get_by_text("Other settings").click()
    page.get_by_label("Settings (TOML)").fill("n_trials = ")
    found.button("Start the search").click()
    expect(alert).to_contain_text("are no TOML")
    found.check(400)
    page.context.close()


def test_what_went_wrong_is_in_sight_wherever_the_button_stands(
    browser: Browser, shown: Server
) -> None:
    found = tab(browser, shown, 400)
    page = found.page
    page.goto(shown.opened("/new"))
    page.get_by_role("radio", name="A folder").click()
    page.get_by_text("Own prompt sets").click()
    expect(page.get_by_label(re.compile("trigger it.*: rows"))).to_be_visible()
    start = found.button("Start the search")
    # The part opens bit by bit, and moves the button down.
    page.wait_for_function("window.scrollTo(0, document.body.scrollHeight) || window.scrollY > 400")
    start.click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Choose the model's folder")
    expect(alert).to_be_in_viewport(ratio=1)
    box, bar = alert.bounding_box(), page.locator("header").bounding_box()
    assert box is not None
    assert bar is not None
    assert box["y"] >= bar["y"] + bar["height"]  # not below the bar
    found.check(400)
    page.context.close()


def test_names_that_are_not_utf8(browser: Browser, tmp_path: Path) -> None:
    """No address and no field can hold them as they are."""
    odd = os.fsdecode(b"caf\xe9-0123456789ab")
    page_case.make_run(tmp_path / "runs" / odd)
    (tmp_path / "models" / odd).mkdir(parents=True)
    with serving(tmp_path, tmp_path / "runs") as server:
        found = tab(browser, server, 400)
        page = found.page
        page.goto(server.opened("/"))
        expect(page.get_by_text("caf\ufffd-0123456789ab")).to_be_visible()
        page.get_by_role("link", name="onerror").click()
        expect(page.get_by_role("heading", name="What it edits")).to_be_visible()
        expect(page).to_have_url(re.compile("/run/caf~e9-0123456789ab"))
        page.locator("table button.link").first.click()
        found.button("Report").click()
        page.wait_for_url("**/report/**")
        expect(page.frame_locator("iframe.report").get_by_text("The front").first).to_be_visible()
        found.check(400)
        page.goto(f"{server.base}/new")
        page.get_by_role("radio", name="A folder").click()
        page.get_by_role("button", name="Browse").first.click()
        found.button(f"{tmp_path}/").click()
        found.button("models/").click()
        found.button("caf\ufffd-0123456789ab/").click()
        found.button("Choose this folder").click()
        expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("not UTF-8")
        found.check(400, dialog=True)
        page.context.close()


def test_a_folder_can_be_picked_below_the_working_folder_alone(
    browser: Browser, tmp_path: Path
) -> None:
    inside = tmp_path / "inside"
    (inside / "models" / "one").mkdir(parents=True)
    with serving(inside, inside / "runs") as server:
        found = tab(browser, server, 400)
        page = found.page
        page.goto(server.opened("/new"))
        page.get_by_role("radio", name="A folder").click()
        page.get_by_role("button", name="Browse").first.click()
        found.button(f"{inside}/").click()
        found.button("models/").click()
        found.button("Up").click()
        found.button("Up").click()
        expect(found.button(f"{inside}/")).to_be_visible()  # no further
        found.button(f"{inside}/").click()
        found.button("models/").click()
        found.button("one/").click()
        found.check(400, dialog=True)
        found.button("Choose this folder").click()
        expect(page.get_by_label("Folder of the model")).to_have_value(str(inside / "models/one"))
        page.context.close()
