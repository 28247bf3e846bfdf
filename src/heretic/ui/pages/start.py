"""A new search: model, prompt sets with preview, what would be edited, and the start."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from nicegui import ui

from heretic.config.behaviors import documented
from heretic.errors import HereticError
from heretic.system.display import bytes_text, clip, safe
from heretic.ui.pages.parts import SECONDS, Alerts, Part, Tag, button, frame, table
from heretic.ui.pages.picker import pick
from heretic.ui.pages.sets import PromptSet
from heretic.ui.site import Form, Site
from heretic.ui.uploads import SHOWN_CHARACTERS

SETS = {
    "good_prompts": "Prompts that do not trigger the behaviour (directions)",
    "bad_prompts": "Prompts that trigger it (directions)",
    "good_evaluation_prompts": "Prompts on which the model should stay as it was",
    "bad_evaluation_prompts": "Prompts on which the behaviour is counted",
}
SOURCES = {"demo": "The demo", "hub": "A model on the Hub", "folder": "A folder"}
OWN = (
    "A file, a folder, a data set on the Hub, or a file that you upload: text with a prompt in "
    "each line, CSV, TSV, JSON or JSON lines. Empty: the behaviour's own."
)
DEMO = (
    "A small model that has been taught to decline questions about astronomy. It comes from a "
    "Python package (93 MB, downloaded the first time); a search of 14 trials takes minutes."
)


async def show(site: Site) -> None:
    """Draw the page."""
    with frame(site, "New search") as alerts:
        page = _Start(site, alerts)
        ui.timer(SECONDS, page.refresh)


class _Start:
    def __init__(self, site: Site, alerts: Alerts) -> None:
        self._site, self._alerts = site, alerts
        self._asked, self._opening = False, ""
        Tag("h2", "Model")
        self._source = ui.radio(SOURCES, value="demo", on_change=self._show_source).props("inline")
        self._demo = Tag("p", DEMO, "dim")
        self._hub = ui.input("OWNER/NAME on the Hub").classes("field").props("outlined dense")
        with ui.element("div").classes("actions") as self._folder_row:
            self._folder = ui.input("Folder of the model").classes("field")
            self._folder.props("outlined dense")
            button("Browse", self._browse_model, flat=True)
        self._draw_prompts()
        self._draw_search()
        self._found = ui.element("div").classes("part").props("aria-live=polite")
        self._show_source()

    def _draw_prompts(self) -> None:
        with ui.element("div").classes("part") as self._prompts:
            Tag("h2", "Behaviour and prompts")
            names = {"": "As in config.toml, or refusals"}
            names |= {name: safe(f"{name}: {text}") for name, text in documented()}
            self._behavior = ui.select(names, value="", label="Behaviour").classes("field")
            self._behavior.props("outlined dense")
            with ui.expansion("Own prompt sets").classes("sets").props("dense"):
                Tag("p", OWN)
                self._sets = [
                    PromptSet(self._site, self._alerts, name, told) for name, told in SETS.items()
                ]
            with ui.element("div").classes("actions"):
                button("Preview the prompts", self._trying(self._preview), flat=True)

    def _draw_search(self) -> None:
        Tag("h2", "Search")
        Tag("p", "Fields that are empty are as in config.toml, or as usual.", "dim")
        with ui.element("div").classes("actions"):
            self._n_trials = ui.number("Trials", min=1, precision=0)
            self._time = ui.input("Time limit, such as 2h")
            for one in (self._n_trials, self._time):
                one.classes("narrow").props("outlined dense")
        with ui.expansion("Other settings").classes("field").props("dense"):
            Tag("p", "As in config.toml. Remote code is run only if trust_remote_code stands here.")
            self._more = ui.textarea("Settings (TOML)").classes("part").props("outlined autogrow")
        with ui.element("div").classes("actions"):
            button("Start the search", self._trying(self._begin))
            self._inspect_button = button(
                "Inspect the model", self._trying(self._inspect), flat=True
            )

    async def refresh(self) -> None:
        """Tell how far the opening has come, and go to the run once it can be shown."""
        job = self._site.job
        self._opening = await self._site.opening()
        if not self._asked:
            return
        if job.error and not job.opening:
            self._asked = False
            self._found.clear()
            self._alerts.say(job.error)
        elif job.run is not None and job.is_open(job.run):
            self._asked = False
            ui.navigate.to(f"/run/{quote(self._site.key_of(job.run))}")
        else:
            self._told.refresh()

    def _show_source(self) -> None:
        source = self._source.value
        self._demo.set_visibility(source == "demo")
        self._hub.set_visibility(source == "hub")
        self._folder_row.set_visibility(source == "folder")
        self._prompts.set_visibility(source != "demo")
        self._inspect_button.set_visibility(source != "demo")

    def _browse_model(self) -> None:
        pick(self._site.places, lambda path: setattr(self._folder, "value", path), files=False)

    def _settings(self) -> dict[str, object]:
        source = str(self._source.value)
        demo = source == "demo"
        sets = () if demo else tuple(one.named for one in self._sets)
        trials = self._n_trials.value
        return Form(
            source=source,
            model=str(self._hub.value if source == "hub" else self._folder.value),
            behavior="" if demo else str(self._behavior.value),
            n_trials=int(trials) if trials else None,
            time_limit=str(self._time.value),
            sets=sets,
            more=str(self._more.value),
        ).settings(self._site.places)

    def _trying(self, work: Any) -> Any:
        async def tried() -> None:
            await self._alerts.trying(work)

        return tried

    def _begin(self) -> None:
        settings = self._settings()
        self._site.job.begin(settings, demo=self._source.value == "demo")
        self._asked = True
        self._found.clear()
        with self._found, ui.element("div").classes("card"):
            self._told = Part(lambda: self._opening, lambda text: Tag("p", text))
            Tag("p", "This may take a while. Closing this page does not end it.", "dim")

    async def _inspect(self) -> None:
        settings = self._settings()
        self._wait("The configuration is being read.")
        try:
            found = await self._site.job.inspect(settings)
        except HereticError:
            self._found.clear()
            raise
        self._found.clear()
        with self._found:
            _draw_inspected(found)

    async def _preview(self) -> None:
        settings = self._settings()
        settings.pop("model", None)
        self._wait("The prompt sets are being read.")
        try:
            found = await self._site.job.preview(settings)
        except HereticError:
            self._found.clear()
            raise
        self._found.clear()
        with self._found:
            _draw_preview(found)

    def _wait(self, text: str) -> None:
        self._found.clear()
        with self._found:
            Tag("p", text)


def _draw_inspected(found: dict[str, Any]) -> None:
    Tag("h2", "What would be edited")
    fits = "It fits." if found["fits"] else "That is more than there is."
    Tag("p", f"{found['model']}: {found['n_layers']} layers, {found['parameters']:,} weights.")
    need = bytes_text(found["memory"]["total"])
    Tag("p", f"A search on {found['device']['name']} needs about {need}. {fits}")
    rows = [
        (row["component"], row["path"], str(len(row["layers"])), row["edit"])
        for row in found["writers"]
    ]
    table(("component", "writer", "layers", "edited"), rows, "Writers")


def _draw_preview(found: dict[str, Any]) -> None:
    for name, one in found["sets"].items():
        Tag("h3", f"{name}: {one['count']} prompts")
        for prompt in one["first"]:
            Tag("div", clip(prompt["user"], SHOWN_CHARACTERS), "prompt")
