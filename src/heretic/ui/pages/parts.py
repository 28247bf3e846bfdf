"""Pieces that all pages share: text, tables, the frame, and errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from heretic.errors import HereticError
from heretic.system.display import safe

if TYPE_CHECKING:
    from heretic.ui.site import Site

Data = TypeVar("Data")

SECONDS = 0.4
"""Between two looks of a tab at what is new."""


class Tag(TextElement):
    """An HTML element that holds text, as text."""

    def __init__(self, tag: str, text: str = "", classes: str = "") -> None:
        super().__init__(tag=tag, text=safe(text))
        if classes:
            self.classes(classes)

    def say(self, text: str) -> None:
        """Show another text."""
        self.text = safe(text)


class Part(Generic[Data]):
    """A part of a page, drawn anew when its data differ.

    Args:
        read: Gives the data.
        draw: Draws them.
    """

    def __init__(
        self, read: Callable[[], Data], draw: Callable[[Data], object], tag: str = "div"
    ) -> None:
        self._read, self._draw = read, draw
        self.box = ui.element(tag).classes("part")
        self._last: object = self  # no data are equal to it

    def refresh(self) -> None:
        """Draw anew if the data differ."""
        data = self._read()
        if data != self._last:
            self._last = data
            self.box.clear()
            with self.box:
                self._draw(data)


class Alerts:
    """Where a page says what went wrong, for readers of screens too."""

    def __init__(self) -> None:
        # They stay in sight: what was asked for may stand far below.
        with ui.element("div").classes("alerts"):
            self._box = ui.element("div").props('role="alert"')
            with ui.element("div").props('role="status"'):
                self._told = Tag("p", "", "dim")

    def say(self, text: str) -> None:
        """Show one text in place of those before."""
        self.clear()
        with self._box, ui.element("div").classes("alert"):
            Tag("p", text)
            ui.button("Close", on_click=self.clear).props("flat dense no-caps")

    def tell(self, text: str) -> None:
        """Show what is being done."""
        self._told.say(text)

    def clear(self) -> None:
        """Show nothing."""
        self._box.clear()
        self._told.say("")

    async def trying(self, work: Callable[[], Awaitable[None] | None]) -> bool:
        """Carry out what the user asked for; what went wrong is shown.

        Returns:
            Whether nothing went wrong.
        """
        self.clear()
        try:
            waiting = work()
            if waiting is not None:
                await waiting
        except HereticError as error:
            self.say(str(error))
            return False
        return True


@cache
def _text_of(name: str) -> str:
    return files("heretic.ui.pages").joinpath(name).read_text(encoding="utf-8")


@contextmanager
def frame(site: Site, title: str) -> Iterator[Alerts]:
    """The frame of a page, with its heading; what is drawn within stands below that."""
    ui.add_css(_text_of("page.css"))
    ui.add_body_html(f"<script>{_text_of('focus.js')}</script>")
    ui.colors(primary="#245c99", positive="#22785c", negative="#b83247")
    with ui.header().classes("top"):
        with ui.element("nav").props('aria-label="Main"'):
            ui.link("Runs", "/")
            ui.link("New search", "/new")
        busy = Part(lambda: work_of(site), _draw_busy)
    ui.timer(SECONDS, busy.refresh)
    busy.refresh()
    with ui.element("div").classes("page"):
        Tag("h1", title)
        alerts = Alerts()
        yield alerts


def work_of(site: Site) -> tuple[str, str]:
    """What the page's worker does, and what addresses call the run; both empty for nothing."""
    job = site.job
    if job.opening:
        return f"Opening {job.opening}", ""
    if job.state.state in ("searching", "paused") and job.run is not None:
        return f"{job.state.state.capitalize()}: {job.run.name}", site.key_of(job.run)
    return "", ""


def _draw_busy(found: tuple[str, str]) -> None:
    text, key = found
    if key:
        ui.link(safe(text), f"/run/{quote(key)}").classes("busy")
    elif text:
        Tag("span", text, "busy")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
    """A table of texts; the first cell of a row is its heading."""
    box = ui.element("div").classes("scroll").props("tabindex=0 role=region")
    box.props["aria-label"] = caption
    with box, ui.element("table"):
        with ui.element("thead"), ui.element("tr"):
            for one in headings:
                Tag("th" if one else "td", one).props("scope=col" if one else "")
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for place, cell in enumerate(row):
                        Tag("td" if place else "th", cell).props("" if place else "scope=row")


def button(text: str, work: Callable[[], Any], *, flat: bool = False) -> ui.button:
    """A button."""
    made = ui.button(text, on_click=work).props("no-caps unelevated")
    return made.props("outline") if flat else made


def dialog_of(title: str) -> ui.dialog:
    """A dialog that goes by a name."""
    made = ui.dialog()
    made.props["aria-label"] = title
    return made
