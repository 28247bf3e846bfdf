"""Measures the page `heretic ui` in a real browser, on a run that another process seems to search.

    python benchmarks/ui.py [TRIALS]

Needs the extras `ui` and `dev`, and Debian's `chromium` on the PATH; loads no model. Prints

- the time from the command to a page on which a search can be set up, with the server's processor
  time, which other work on the machine hardly moves;
- the time from the end of a trial, written as a search writes it, to its sight in the browser, on a
  run with few trials and on one with TRIALS (default 1,000);
- the longest task of the browser's main thread (its own "long task" timing, from 50 ms) while
  trials come in and points are chosen on the run with TRIALS, and the processor time of that thread
  for each of these, which other work on the machine hardly moves;
- the memory of the server (proportional set size) before and after.

Targets: 3 s; 1 s; 100 ms; 300 MB. Exit status 1 if one is missed.
"""

from __future__ import annotations

import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

if __package__ in (None, ""):
    # A script sees its own folder only; the makers of runs are imported as tests import them.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support import page_case
from tests.support.search_case import evaluate
from tests.support.ui_server import Server, serving

from heretic.events import SearchStarted, TrialFinished, TrialStarted
from heretic.records import ATTENTION, MLP, Kernel, Plan, Trial
from heretic.records.trial import front
from heretic.runs.events import EventsFile
from heretic.runs.folder import RunFolder
from heretic.runs.journal import TRIAL_KEY, trial_to_record

START_SECONDS, TRIAL_SECONDS, TASK_SECONDS, SERVER_BYTES = 3.0, 1.0, 0.1, 300e6
KEY = "run-0123456789ab"
FEW, SHOWN, TARGET = 12, 12, 5000
PAUSE = 0.73
"""Seconds between two trials: no multiple of the page's own intervals."""

WATCH = """
window.tasks = []
new PerformanceObserver(list => {
    for (const one of list.getEntries()) window.tasks.push(one.duration)
}).observe({ type: 'longtask', buffered: true })
"""


SEES = """
text => document.querySelector('section[aria-label=State]')?.textContent.includes(text)
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run, in seconds.

    Attributes:
        seen: Until each trial was seen.
        tasks: Of the browser's long tasks, by the clock.
        used: Processor time of the browser's main thread for each trial, and for each choice.
        opened: Until the page was there.
    """

    seen: list[float]
    tasks: list[float]
    used: list[float]
    opened: float


class Search:
    """Trials of a run, told as a search tells them."""

    def __init__(self, place: Path, trials: int) -> None:
        self.folder = RunFolder(page_case.make_run(place / KEY))
        with self.folder.lock():
            self._add(trials)
        self.trials = self.folder.read_trials()
        self.events = EventsFile(self.folder.events_path)
        self._numbers = count(self.trials[-1].number + 1)

    def _add(self, trials: int) -> None:
        """Write trials with random plans and their scores, without a search, which takes longer."""
        chance = random.Random(1)
        drawn = [
            Kernel(chance.uniform(0.1, 1.5), chance.uniform(0, 23), 0.1, chance.uniform(2, 14))
            for _ in range(2 * trials)
        ]
        plans = [
            Plan.create(
                direction_scope="global",
                direction_index=chance.uniform(8, 20),
                kernels={ATTENTION: drawn[2 * place], MLP: drawn[2 * place + 1]},
                row_normalization="full",
            )
            for place in range(trials)
        ]
        first = len(self.folder.read_trials())
        found = [
            Trial(first + place, plan, scores, "complete", None, 1.0)
            for place, (plan, scores) in enumerate(zip(plans, evaluate(plans), strict=True))
        ]
        rows = [{"user_attr": {TRIAL_KEY: trial_to_record(one)}} for one in found]
        self.folder.open_journal().append(rows)
        self.folder.mark_journal()

    def begin(self) -> None:
        """Tell that a search has begun."""
        self.events.write("CommandStarted", {"since": 0.0})
        self.events.emit(SearchStarted(len(self.trials), TARGET, ()))

    def end_a_trial(self) -> None:
        """Tell of one more trial, whose scores are those of an earlier one, moved a little."""
        number = next(self._numbers)
        old = self.trials[number % len(self.trials)]
        scores = tuple(replace(one, value=one.value * 0.999) for one in old.scores)
        trial = Trial(number, old.plan, scores, "complete", None, 1.0)
        self.trials.append(trial)
        done = len(self.trials)
        self.events.emit(TrialStarted(number, done - 1, TARGET))
        self.events.emit(TrialFinished(trial, front(self.trials), done, TARGET, 1.0, 60.0))


@contextmanager
def browser_page() -> Iterator[Page]:
    """A page of a browser that has been started already."""
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if path is None:
        sys.exit("There is no Chromium on the PATH: Debian's package is `chromium`.")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=path, args=options)
        page = started.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.add_init_script(WATCH)
        yield page
        started.close()


def measure_start(page: Page, place: Path) -> tuple[float, float, float]:
    """Seconds to the page, the server's processor seconds until then, and its memory in bytes."""
    began = time.perf_counter()
    with serving(place, place / "runs") as server:
        page.goto(server.opened("/new"))
        page.get_by_role("radio", name="A folder").click()
        page.get_by_label("Folder of the model").fill("model")  # the server has shown the field
        return time.perf_counter() - began, processor_seconds(server), memory(server)


def measure_run(page: Page, place: Path, trials: int) -> tuple[Figures, float]:
    """A run with so many trials, to which more come; and the server's memory in bytes."""
    search = Search(place / "runs", trials)
    with search.folder.lock(), serving(place, place / "runs") as server:
        search.begin()
        began = time.perf_counter()
        page.goto(server.opened(f"/run/{KEY}"))
        wait_for_count(page, len(search.trials))
        opened = time.perf_counter() - began
        seen, used = [], []
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def thread_seconds() -> float:
            rows = session.send("Performance.getMetrics")["metrics"]
            return float(next(one["value"] for one in rows if one["name"] == "TaskDuration"))

        time.sleep(2)
        page.evaluate("window.tasks.length = 0")
        for _ in range(SHOWN):
            before = thread_seconds()
            search.end_a_trial()
            ended = time.perf_counter()
            wait_for_count(page, len(search.trials))
            seen.append(time.perf_counter() - ended)
            time.sleep(PAUSE)
            used.append(thread_seconds() - before)
        rows = page.locator("button.link")
        for row in range(min(SHOWN // 2, rows.count())):
            before = thread_seconds()
            rows.nth(row).click()
            time.sleep(PAUSE)
            used.append(thread_seconds() - before)
        tasks = [one / 1000 for one in page.evaluate("window.tasks")]
        return Figures(seen, tasks, used, opened), memory(server)


def wait_for_count(page: Page, number: int) -> None:
    """Wait until the page shows so many trials, looking at each frame."""
    text = f"{number} of {TARGET} trials"
    page.wait_for_function(SEES, arg=text)


def processor_seconds(server: Server) -> float:
    """User and system time of the server so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(server: Server) -> float:
    """Proportional set size of the server."""
    lines = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text().splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith("Pss:"))
    return float(size) * 1024


def main() -> int:
    """Measure, print, compare with the targets."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with browser_page() as page, tempfile.TemporaryDirectory() as name:
        places = [Path(name) / one for one in ("start", "few", "many")]
        for place in places:
            place.mkdir()
        started, used, empty = measure_start(page, places[0])
        few, _ = measure_run(page, places[1], FEW)
        many, full = measure_run(page, places[2], trials)
    longest = max(many.tasks, default=0.0)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"heretic ui ({machine}, load {os.getloadavg()[0]:.1f})")
    print(f"usable after {started:.1f} s, {used:.1f} s of processor time; target 3 s")
    for told, found in ((FEW, few), (trials, many)):
        print(
            f"{told} trials: opened in {found.opened:.1f} s; a trial is seen after "
            f"{statistics.median(found.seen):.2f} s in the middle, {max(found.seen):.2f} s at "
            "most; target 1 s"
        )
    print(
        f"{trials} trials: longest task {longest * 1000:.0f} ms, {len(many.tasks)} of 50 ms and "
        f"more; {statistics.median(many.used) * 1000:.0f} ms of processor time in the middle, "
        f"{max(many.used) * 1000:.0f} ms at most; target 100 ms"
    )
    print(f"server: {empty / 1e6:.0f} MB, {full / 1e6:.0f} MB with the trials; target 300 MB")
    slowest = max(*few.seen, *many.seen)
    return int(
        started > START_SECONDS
        or slowest > TRIAL_SECONDS
        or longest > TASK_SECONDS
        or full > SERVER_BYTES
    )


if __name__ == "__main__":
    sys.exit(main())
