"""Dialogs in which something is asked about a trial: scores, saving, upload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nicegui import ui

from heretic.ui.pages.parts import Alerts, Tag, button, dialog_of
from heretic.ui.places import Places
from heretic.ui.task import Asked, saving, scoring, uploading
from heretic.worker.protocol import Score

Ask = Callable[[Asked], None]
"""Asks the worker.

Raises:
    HereticError: It cannot be asked.
"""

WEIGHTS = {"merge": "A whole model (merge)", "adapter": "An adapter"}
SAVED = {**WEIGHTS, "gguf": "A whole model, and GGUF files of it for llama.cpp"}
USUAL_TYPES = "q8_0, q4_k_m"
WORK = "It is scored again, verified from disk and audited, which takes a while."
LOGIN = (
    "The login of the machine on which this page runs is used: `hf auth login` there, or HF_TOKEN "
    "where `heretic ui` was started. Nothing is uploaded before the checks have passed."
)


def ask_score(trial: int, ask: Ask) -> None:
    """Ask on what to score a trial again."""
    with dialog_of("Score again") as dialog, ui.card().classes("dialog"):
        Tag("h2", "Score again")
        held_out = ui.checkbox("On held-out prompts, which the search has not seen")
        first = ui.number("First prompts of each set (empty: all)", min=1, precision=0)
        tokens = ui.number("New tokens of a reply (empty: as in the search)", min=1, precision=0)
        for one in (first, tokens):
            one.classes("field").props("outlined dense")

        def wanted() -> Asked:
            return scoring(
                Score(
                    trial=trial,
                    prompts="held_out" if held_out.value else "evaluation",
                    first=_whole(first.value),
                    tokens=_whole(tokens.value),
                )
            )

        _end(dialog, "Score", lambda: ask(wanted()))
    dialog.open()


def ask_save(trial: int, places: Places, ask: Ask) -> None:
    """Ask where to and as what to save a trial."""
    with dialog_of("Save the edited model") as dialog, ui.card().classes("dialog"):
        Tag("h2", "Save the edited model")
        folder = ui.input("New folder", value=f"{_unused(Path.cwd() / 'edited')}")
        folder.classes("field").props("outlined dense")
        strategy = ui.radio(SAVED, value="merge")
        types = ui.input("Types of the GGUF files", value=USUAL_TYPES).classes("field")
        types.props("outlined dense").bind_visibility_from(strategy, "value", value="gguf")
        Tag("p", WORK)

        def wanted() -> Asked:
            path = places.checked(str(folder.value).strip())
            kind = strategy.value
            named = [str(types.value or "")] if kind == "gguf" else []
            return saving(trial, path, kind, named)

        _end(dialog, "Save", lambda: ask(wanted()))
    dialog.open()


def ask_upload(trial: int, ask: Ask) -> None:
    """Ask for the repository to which a trial is uploaded."""
    with dialog_of("Upload to the Hub") as dialog, ui.card().classes("dialog"):
        Tag("h2", "Upload to the Hub")
        repository = ui.input("Repository, such as NAME/edited").classes("field")
        repository.props("outlined dense")
        strategy = ui.radio(WEIGHTS, value="merge")
        private = ui.checkbox("Private: only you can see it", value=True)
        Tag("p", LOGIN)
        Tag("p", WORK)

        def wanted() -> Asked:
            name = str(repository.value).strip()
            return uploading(trial, name, strategy.value, private=bool(private.value))

        _end(dialog, "Upload", lambda: ask(wanted()))
    dialog.open()


def _end(dialog: ui.dialog, name: str, work: Callable[[], None]) -> None:
    """Buttons at the end of a dialog, which stays open until what it asks for is accepted."""
    alerts = Alerts()

    async def ended() -> None:
        if await alerts.trying(work):
            dialog.close()

    with ui.element("div").classes("actions"):
        button(name, ended)
        button("Cancel", dialog.close, flat=True)


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 1 else None


def _unused(folder: Path) -> Path:
    """That folder, or one with a number where it is taken."""
    for number in range(2, 100):
        if not folder.exists():
            return folder
        folder = folder.with_name(f"{folder.name.rstrip('0123456789-')}-{number}")
    return folder
