"""Chooses a folder or file among those that the page may show."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from nicegui import ui

from heretic.errors import HereticError
from heretic.system.display import safe
from heretic.ui.pages.parts import Tag, button, dialog_of
from heretic.ui.places import Places


def pick(places: Places, use: Callable[[str], None], *, files: bool) -> None:
    """Open a dialog; `use` gets the path that is chosen.

    Args:
        files: Whether files can be chosen, too.
    """
    title = "Choose a file or folder" if files else "Choose a folder"
    with dialog_of(title) as dialog, ui.card().classes("dialog"):
        Tag("h2", title)
        with ui.element("div").props('role="alert"'):
            said = Tag("p", "", "note")
        box = ui.element("div").classes("part")
        button("Cancel", dialog.close, flat=True)

    def choose(path: Path) -> None:
        if not _is_utf8(str(path)):
            said.say("This name is not UTF-8, so that no field can hold it. Rename it first.")
            return
        dialog.close()
        use(str(path))

    def show(folder: Path | None) -> None:
        box.clear()
        with box:
            if folder is None:
                for root in places.roots:
                    if root.is_dir():
                        _row(f"{root}/", partial(show, root))
                return
            Tag("p", str(folder), "note")
            with ui.element("div").classes("actions"):
                button("Choose this folder", lambda: choose(folder))
                button("Up", lambda: show(places.parent(folder)), flat=True)
            _entries(folder)

    def _entries(folder: Path) -> None:
        try:
            found = places.entries(folder)
        except HereticError as error:
            Tag("p", str(error), "note")
            return
        for entry in found:
            if entry.is_folder:
                _row(f"{entry.name}/", partial(show, entry.path))
            elif files:
                _row(entry.name, partial(choose, entry.path))

    show(None)
    dialog.open()


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _row(name: str, work: Callable[[], None]) -> None:
    ui.button(safe(name), on_click=work).props("flat no-caps align=left").classes("pick")
