"""The front of a run as a picture and as a table."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nicegui import ui
from nicegui.events import EChartPointClickEventArguments, GenericEventArguments

from heretic.ui.charts import NUMBER, front_options
from heretic.ui.pages.parts import Tag
from heretic.ui.views import FrontChart, FrontRow, FrontTable

Choose = Callable[[int], Awaitable[None]]

PUT = """
(function put(left) {
    const chart = getElement(%d)?.chart
    if (chart) chart.setOption(%s)
    else if (left) setTimeout(() => put(left - 1), 50)
})(200)
"""
"""The chart is ready a moment after it has been drawn."""


class FrontPicture:
    """The picture of the front. Of a new front, only what differs reaches the browser.

    The library's own update puts all points through Vue and through three copies, which takes a
    tenth of a second with 1,000 trials.

    Args:
        choose: Called with the number of the trial that is clicked; -1 is the original.
    """

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._chart = ui.echart(front_options(None, None), on_point_click=self._clicked)
        self._chart.classes("chart").props('role="img" aria-label="The front of the trials"')

    def show(self, chart: FrontChart | None, selected: int | None) -> None:
        """Show a front, with a ring around one trial."""
        options = front_options(chart, selected)
        changed = _changed(self._chart.options, options)
        self._chart.options.update(options)
        if changed:
            ui.run_javascript(PUT % (self._chart.id, json.dumps(changed)))

    async def _clicked(self, event: EChartPointClickEventArguments) -> None:
        value = event.value
        if isinstance(value, list) and len(value) > NUMBER and isinstance(value[NUMBER], int):
            await self._choose(value[NUMBER])


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The names of axes and the points that differ; ECharts merges them into the rest."""
    found: dict[str, Any] = {
        axis: {"name": new[axis]["name"]}
        for axis in ("xAxis", "yAxis")
        if old[axis]["name"] != new[axis]["name"]
    }
    series = [
        {"name": after["name"], "data": after["data"]}
        for before, after in zip(old["series"], new["series"], strict=True)
        if before["data"] != after["data"]
    ]
    return found | ({"series": series} if series else {})


class FrontRows:
    """A table whose rows stay: of a new front, only the texts that differ reach the browser.

    A table that is drawn anew with every trial takes the browser a tenth of a second, and takes the
    focus from whoever is in it.

    Args:
        choose: Called with the number of the trial that is chosen.
    """

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._drawn: tuple[tuple[str, ...], ...] = ()  # headings, and the original's cells
        self._rows: list[_Row] = []
        self._none = Tag("p", "No trial is complete yet.")
        with ui.element("div").classes("scroll"), ui.element("table"):
            self._head, self._body = ui.element("thead"), ui.element("tbody")
        self._left_out = Tag("p", "", "dim")

    def show(self, found: FrontTable | None) -> None:
        """Show a front; None before there is one."""
        rows = found.rows if found is not None else ()
        self._none.set_visibility(not rows)
        if found is None or not rows:
            self._clear()
            return
        if (found.headings, found.original) != self._drawn:
            self._draw_head(found)
        while len(self._rows) > len(rows):
            self._rows.pop().delete()
        with self._body:
            for _ in range(len(rows) - len(self._rows)):
                self._rows.append(_Row(len(found.headings), self._choose))
        for drawn, row in zip(self._rows, rows, strict=True):
            drawn.show(row)
        left = f"Not in the table: {found.left_out} more trials of the front."
        self._left_out.say(left if found.left_out else "")

    def _clear(self) -> None:
        if self._drawn:
            self._head.clear()
            self._body.clear()
            self._drawn, self._rows = (), []
            self._left_out.say("")

    def _draw_head(self, found: FrontTable) -> None:
        self._clear()
        self._drawn = (found.headings, found.original)
        with self._head, ui.element("tr"):
            for heading in ("the front", *found.headings):
                Tag("th", heading).props("scope=col")
        with self._body, ui.element("tr"):
            Tag("th", "original model").props("scope=row")
            _cells(found.original)


def _cells(texts: Sequence[str]) -> list[Tag]:
    return [Tag("td", text) for text in texts]


NUMBER_OF_ROW = "(event) => emit(Number(event.currentTarget.dataset.number))"
"""The trial that the browser shows at the click: a newer front may be on its way to it."""


class _Row:
    """A trial of the front."""

    def __init__(self, cells: int, choose: Choose) -> None:
        self._choose = choose
        with ui.element("tr") as self._row:
            with ui.element("td"):
                self._label = Tag("button", "", "link").props("type=button")
                self._label.on("click", self._clicked, js_handler=NUMBER_OF_ROW)
            self._cells = _cells([""] * cells)

    def show(self, row: FrontRow) -> None:
        """Show another trial."""
        if self._label.props.get("data-number") != row.number:
            self._label.props["data-number"] = row.number
        self._label.say(row.label)
        for cell, text in zip(self._cells, row.cells, strict=True):
            cell.say(text)

    async def _clicked(self, event: GenericEventArguments) -> None:
        if isinstance(event.args, int):
            await self._choose(event.args)

    def delete(self) -> None:
        """Take the row out of the table."""
        self._row.delete()
