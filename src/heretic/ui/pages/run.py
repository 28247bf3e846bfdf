"""The page of one run: what it does now, its front, the trial that is chosen, its controls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import quote

from nicegui import ui
from nicegui.element import Element

from heretic.errors import RunError
from heretic.report.page.words import facts
from heretic.runs.listing import target_of
from heretic.system.display import counted, safe
from heretic.ui.pages.front import FrontPicture, FrontRows
from heretic.ui.pages.parts import SECONDS, Alerts, Part, Tag, button, frame, table
from heretic.ui.pages.trial import TrialPanel
from heretic.ui.site import Again, Site
from heretic.ui.views import (
    FrontView,
    Now,
    failed_of,
    now_of,
    short_model,
    stages_of,
)
from heretic.ui.watch import Watch, now

MORE = 20
"""Trials that are proposed beyond those of a search that has ended."""

AGAIN = (
    "What a run folder must not decide, such as trust_remote_code or the address of a judge, "
    "stands here as in config.toml, and counts for this loading alone. Where an error names the "
    "option --trust-remote-code, write trust_remote_code = true. A number of trials that you have "
    "changed is reached even if the front stops growing."
)


async def show(site: Site, key: str, trial: int | None) -> None:
    """Draw the page of the run of that name."""
    try:
        watch = await site.watch(key)
    except RunError as error:
        with frame(site, "No such run") as alerts:
            alerts.say(str(error))
        return
    data = watch.data
    title = short_model(data.manifest.model) if data is not None else key
    with frame(site, title) as alerts:
        page = _Run(site, watch, key, alerts, trial)
        await page.refresh()
        ui.timer(SECONDS, page.refresh)


@dataclass(frozen=True, slots=True)
class Controls:
    """Which controls are there, and what the page says beside them."""

    go_on: bool = False
    load: bool = False
    pause: bool = False
    resume: bool = False
    stop: bool = False
    unload: bool = False
    said: str = ""


ASKED = {
    "pause": "The search pauses after its batch.",
    "stop": "The search stops after its batch.",
    "quit": "The worker ends after its batch.",
}


def controls_of(site: Site, watch: Watch) -> Controls:
    """What may be done with a run now."""
    if not site.is_ours(watch):
        return _of_others(site, watch)
    job, state = site.job, site.job.state
    if job.opening:
        return Controls(stop=True, said="The run is being opened.")
    asked = ASKED.get(state.asked or "", "")
    if state.state == "searching":
        waiting = f" Requests that wait for its end: {state.waiting}." if state.waiting else ""
        pauses = state.asked == "pause"
        return Controls(pause=state.asked is None, resume=pauses, stop=True, said=asked + waiting)
    if state.state == "paused":
        ends = state.asked in ("stop", "quit")
        return Controls(resume=True, stop=True, said=asked if ends else "The search is paused.")
    ended = f"The search has ended ({state.reason})." if state.reason else ""
    told = (ended, safe(state.problem or ""), "The model is loaded.", job.error)
    return Controls(go_on=True, unload=not job.is_busy, said=" ".join(filter(None, told)))


def _of_others(site: Site, watch: Watch) -> Controls:
    """For a run that this page's worker has not open."""
    job = site.job
    if job.ending and job.run == watch.path:
        return Controls(said="The worker ends.")
    if watch.is_locked:
        return Controls(said="Another process works on this run, so its controls are off here.")
    if watch.state == "unreadable":
        return Controls(said=safe(watch.error or "This run cannot be read."))
    if job.is_busy:
        return Controls(said="This page works on another run: stop that one first.")
    died = job.run == watch.path
    return Controls(go_on=True, load=True, said=job.error if died else "")


class _Run:
    def __init__(
        self, site: Site, watch: Watch, key: str, alerts: Alerts, trial: int | None
    ) -> None:
        self._site, self._watch, self._key, self._alerts = site, watch, key, alerts
        self._selected = trial
        self._front: FrontView | None = None
        self._seen = -1
        self._draw_head()
        self._draw_front()
        self._panel = TrialPanel(site, watch, key, alerts)
        self._draw_rest()

    # --- drawing -----------------------------------------------------------------------------

    def _draw_head(self) -> None:
        with ui.element("section").props('aria-label="State"').classes("card"):
            with ui.element("div").props('role="status"'):
                self._now = Part(self._now_of, _draw_now)
            self._said = Part(lambda: controls_of(self._site, self._watch).said, _draw_said)
            with ui.element("div").classes("actions"):
                self._n_trials = ui.number("Trials", min=1, precision=0, value=self._proposed())
                self._time = ui.input("Time limit, such as 2h", value=self._limit())
                for one in (self._n_trials, self._time):
                    one.classes("narrow").props("dense outlined")
                self._buttons: dict[str, Element] = {
                    "go_on": button("Go on with the search", self._go_on),
                    "load": button("Load the model", self._load, flat=True),
                    "pause": button("Pause", self._job("pause"), flat=True),
                    "resume": button("Resume", self._job("resume")),
                    "stop": button("Stop", self._job("stop"), flat=True),
                    "unload": button("Unload the model", self._job("unload"), flat=True),
                }
                button("Report", lambda: self._alerts.trying(self._report), flat=True)
            self._draw_again()
        # The browser may show the page before it was refreshed.
        self._show(Controls())

    def _draw_again(self) -> None:
        """What the user may say when the run is opened, which its folder cannot."""
        with ui.expansion("Settings for loading").classes("field").props("dense") as self._again:
            Tag("p", AGAIN, "dim")
            self._more = ui.textarea("Settings (TOML)").classes("part")
            self._more.props("outlined autogrow")
            self._trust = ui.checkbox("Run the scorers of others that the run names")

    def _now_of(self) -> Now:
        return now_of(self._watch, now(), self._site.state_of(self._watch))

    def _draw_front(self) -> None:
        Tag("h2", "Trials")
        Tag(
            "p",
            "Each point is a trial. Choose one, here or in the table, to see it below.",
            "dim",
        )
        self._picture = FrontPicture(self._choose)
        self._hidden = Part(self._hidden_text, lambda text: Tag("p", text, "dim") if text else None)
        self._table = FrontRows(self._choose)

    def _draw_rest(self) -> None:
        with ui.expansion("More about this run").classes("field").props("dense"):
            self._facts = Part(lambda: tuple(self._facts_of()), self._draw_facts)
            self._stages = Part(lambda: stages_of(self._watch), _draw_stages)
            self._failed = Part(lambda: failed_of(self._watch), _draw_failed)

    def _facts_of(self) -> list[tuple[str, str]]:
        data = self._watch.data
        return (
            []
            if data is None
            else [
                ("folder", str(self._watch.path)),
                *(fact for fact in facts(data) if fact[0] != "state"),  # it stands above
            ]
        )

    def _draw_facts(self, rows: tuple[tuple[str, str], ...]) -> None:
        table(("", ""), rows, "The run")

    def _hidden_text(self) -> str:
        chart = self._front.chart if self._front is not None else None
        hidden = chart.hidden if chart is not None else 0
        trials = counted(hidden, "trial")
        return f"Not in the picture, far to the right: {trials}." if hidden else ""

    # --- what is new -------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Look at the run folder, and draw what has changed."""
        watch = self._watch
        front = await self._site.front(watch)
        self._now.refresh()
        self._said.refresh()
        shown = controls_of(self._site, watch)
        if shown.go_on and not self._n_trials.visible:
            self._n_trials.value = self._proposed()
            self._time.value = self._limit()
        self._show(shown)
        if front is not self._front:
            self._front = front
            if self._selected is None and watch.data is not None:
                self._selected = watch.data.focus
            self._draw_points()
            self._table.show(front.table)
            self._hidden.refresh()
        if self._seen != watch.version:
            self._seen = watch.version
            for part in (self._facts, self._stages, self._failed):
                part.refresh()
        await self._panel.refresh(self._selected, front.table.labels)

    def _show(self, shown: Controls) -> None:
        for name, one in self._buttons.items():
            one.set_visibility(getattr(shown, name))
        self._again.set_visibility(shown.load)
        for one in (self._n_trials, self._time):
            one.set_visibility(shown.go_on)

    def _draw_points(self) -> None:
        self._picture.show(self._front.chart if self._front is not None else None, self._selected)

    async def _choose(self, number: int) -> None:
        if number < 0 or number == self._selected:
            return
        self._selected = number
        ui.navigate.history.replace(f"/run/{quote(self._key)}?trial={number}")
        self._draw_points()
        if self._front is not None:
            await self._panel.refresh(number, self._front.table.labels)

    # --- controls ----------------------------------------------------------------------------

    def _proposed(self) -> int | None:
        target = self._target()
        if target is None:
            return None
        complete = sum(trial.state == "complete" for trial in self._watch.trials)
        return target if complete < target else complete + MORE

    def _limit(self) -> str:
        """The time limit of the last search of this page; without one, none is proposed."""
        return self._site.job.limit if self._site.is_ours(self._watch) else ""

    def _target(self) -> int | None:
        data = self._watch.data
        return target_of(data.manifest) if data is not None else None

    async def _go_on(self) -> None:
        await self._alerts.trying(lambda: self._open(search=True))

    async def _load(self) -> None:
        await self._alerts.trying(lambda: self._open(search=False))

    def _open(self, *, search: bool) -> None:
        asked = Again(
            n_trials=int(self._n_trials.value or 0) or None,
            target=self._target(),
            more=str(self._more.value or ""),
            trust_plugins=bool(self._trust.value),
        )
        self._site.job.go_on(
            self._watch.path,
            search=search,
            more=asked.named if search else None,
            limit=str(self._time.value or "").strip(),
            settings=asked.settings(),
            trust_plugins=asked.trust_plugins,
        )

    def _job(self, name: str) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            await self._alerts.trying(getattr(self._site.job, name))

        return work

    async def _report(self) -> None:
        self._alerts.tell("The report is being made.")
        ui.navigate.to(f"/report/{await self._site.reports.make([self._watch.path])}")


def _draw_now(found: Now) -> None:
    with ui.element("div").classes("actions"):
        Tag("span", found.state, f"state {found.state}")
        Tag("span", found.trials)
        if found.left:
            Tag("span", found.left)
    if found.done is not None:
        bar = ui.element("progress").classes("bar").props('aria-label="Trials done" max=1')
        bar.props["value"] = round(found.done, 4)
    Tag("p", found.doing or "\u00a0", "dim")
    if found.notices:
        with ui.element("ul").classes("notices"):
            for level, text in found.notices[:3]:
                Tag("li", text, "warning" if level == "warning" else "")


def _draw_said(text: str) -> None:
    if text:
        Tag("p", text, "note")


def _draw_stages(rows: tuple[tuple[str, str], ...]) -> None:
    if rows:
        Tag("h3", "Where the time went")
        table(("stage", "time"), rows, "Times by stage")


def _draw_failed(rows: tuple[tuple[int, str], ...]) -> None:
    if rows:
        Tag("h3", "Trials that failed")
        table(("trial", "reason"), [(str(number), why) for number, why in rows], "Failed trials")
