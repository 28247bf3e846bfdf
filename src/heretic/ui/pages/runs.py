"""The list of runs, and the comparison of several."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from nicegui import ui

from heretic.errors import RunError
from heretic.ui.pages.parts import SECONDS, Alerts, Part, Tag, button, frame
from heretic.ui.site import Site
from heretic.ui.views import RunRow, run_rows

HEADINGS = ("", "run", "state", "trials", "failed", "front", "last used (UTC)")


async def show(site: Site) -> None:
    """Draw the page."""
    with frame(site, "Runs") as alerts:
        page = _Runs(site, alerts)
        await page.refresh()
        ui.timer(2.0 + SECONDS, page.refresh)


class _Runs:
    def __init__(self, site: Site, alerts: Alerts) -> None:
        self._site, self._alerts = site, alerts
        self._rows: tuple[RunRow, ...] = ()
        self._chosen: dict[str, bool] = {}
        Tag("p", f"Run folders in {site.runs}", "dim")
        self._part = Part(lambda: self._rows, self._draw)
        with ui.element("div").classes("actions") as self._comparing:
            button("Compare the chosen runs", lambda: alerts.trying(self._compare), flat=True)
        self._comparing.set_visibility(False)  # until there are two

    async def refresh(self) -> None:
        """Read the list again."""
        try:
            runs = await self._site.listed()
            self._rows = run_rows(runs, self._site.own_states(runs))
        except RunError as error:
            self._alerts.say(str(error))
        self._part.refresh()
        self._comparing.set_visibility(len(self._rows) > 1)

    def _draw(self, rows: Sequence[RunRow]) -> None:
        if not rows:
            Tag("p", "There are no runs yet. A run is a search on one model, with all its trials.")
            ui.link("Begin with the demo", "/new")
            return
        with ui.element("div").classes("scroll"), ui.element("table"):
            with ui.element("thead"), ui.element("tr"):
                for heading in HEADINGS:
                    Tag("th" if heading else "td", heading)
            with ui.element("tbody"):
                for row in rows:
                    self._draw_row(row)

    def _draw_row(self, row: RunRow) -> None:
        with ui.element("tr"):
            with ui.element("td"):
                box = ui.checkbox(
                    value=self._chosen.get(row.key, False),
                    on_change=lambda event: self._chosen.update({row.key: bool(event.value)}),
                )
                box.props("dense").props["aria-label"] = f"Compare {row.name}"
            with ui.element("td").classes("named"):
                ui.link(row.model, f"/run/{quote(row.key)}")
                Tag("div", row.note or row.name, "dim note")
            with ui.element("td"):
                Tag("span", row.state, f"state {row.state}")
            for cell in (row.trials, row.failed, row.front, row.used):
                Tag("td", cell)

    async def _compare(self) -> None:
        keys = [row.key for row in self._rows if self._chosen.get(row.key)]
        if len(keys) < 2:
            self._alerts.say("Choose at least two runs: mark them in the first column.")
            return
        self._alerts.tell("The report is being made.")
        key = await self._site.reports.make([self._site.path_of(one) for one in keys])
        ui.navigate.to(f"/report/{key}")
