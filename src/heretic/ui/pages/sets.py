"""The fields of a prompt set: a file, a folder, a data set on the Hub, or an upload."""

from __future__ import annotations

import asyncio

from nicegui import ui
from nicegui.events import UploadEventArguments

from heretic.system.display import bytes_text
from heretic.ui.pages.parts import Alerts, Tag, button
from heretic.ui.pages.picker import pick
from heretic.ui.site import Named, Site
from heretic.ui.uploads import FORMATS, MOST_BYTES, USUAL, Uploaded, keep

REFUSED = (
    f"A file of prompts has at most {bytes_text(MOST_BYTES)} and is one of {', '.join(FORMATS)}. "
    "Put others into a folder that this page shows, and choose them by Browse."
)

FAILED = (
    "The file has not arrived. Upload it again; if that fails too, reload this page, or put the "
    "file into a folder that this page shows, and choose it by Browse."
)


class PromptSet:
    """The fields of one set.

    Args:
        name: Of its setting.
        told: What it is for.
    """

    def __init__(self, site: Site, alerts: Alerts, name: str, told: str) -> None:
        self._site, self._alerts, self._name = site, alerts, name
        Tag("h3", told)
        with ui.element("div").classes("actions"):
            self._place = _field("File, folder or data set", f"{told}: file, folder or data set")
            self._place.classes("field")
            button("Browse", self._browse, flat=True)
            self._draw_upload(told)
            self._split = _field("Rows, such as train[:100]", f"{told}: rows")
            self._column = _field(f"Column, if not {USUAL}", f"{told}: column")
            for one in (self._split, self._column):
                one.classes("narrow")
        self._box = ui.element("div").classes("part").props("aria-live=polite")

    @property
    def named(self) -> Named:
        """What the fields say."""
        texts = (str(one.value or "") for one in (self._place, self._split, self._column))
        return Named(self._name, *texts)

    def _draw_upload(self, told: str) -> None:
        """A button for a file of the browser's machine; the library's own box stays hidden."""
        upload = ui.upload(
            on_upload=self._uploaded,
            on_rejected=lambda: self._alerts.say(REFUSED),
            max_file_size=MOST_BYTES,
            auto_upload=True,
        )
        upload.on("failed", lambda: self._failed(upload), args=[])
        upload.props(f'accept="{",".join(FORMATS)}"').classes("unseen")
        made = ui.button("Upload").props("no-caps unelevated outline")
        made.props["aria-label"] = f"{told}: upload a file"
        made.on("click", js_handler=f"() => getElement({upload.id}).$refs.qRef.pickFiles()")

    def _browse(self) -> None:
        pick(self._site.places, lambda path: setattr(self._place, "value", path), files=True)

    async def _uploaded(self, event: UploadEventArguments) -> None:
        event.sender.reset()  # type: ignore[attr-defined]

        async def work() -> None:
            content = await event.file.read()
            found = await asyncio.to_thread(keep, self._site.runs, event.file.name, content)
            self._place.value, self._split.value = str(found.path), ""
            self._column.value = found.column if found.column not in (None, USUAL) else ""
            self._show(found)

        self._box.clear()
        await self._alerts.trying(work)

    def _failed(self, upload: ui.upload) -> None:
        upload.reset()
        self._box.clear()
        self._alerts.say(FAILED)

    def _show(self, found: Uploaded) -> None:
        with self._box:
            if found.column is None:
                columns = ", ".join(found.columns)
                told = f"{found.name}: {found.count} rows. Name the column of the prompts: "
                Tag("p", f"{told}{columns}.", "note")
                return
            Tag("p", f"{found.name}: {found.count} prompts. The first of them:", "note")
            for text in found.first:
                Tag("div", text, "prompt")


def _field(label: str, full: str) -> ui.input:
    made = ui.input(label).props("outlined dense")
    made.props["aria-label"] = full
    return made
