"""Chat with the original and a trial side by side: same prompts, streamed, with a strength."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from nicegui import ui

from heretic.errors import RunError
from heretic.runs.listing import target_of
from heretic.ui.pages.parts import SECONDS, Alerts, Part, Tag, button, frame
from heretic.ui.site import Again, Site
from heretic.ui.talk import MOST_CHARACTERS
from heretic.ui.watch import Watch

FAST = 0.15
"""Seconds between two looks at replies that are on their way."""

STRONGEST = 2.0


async def show(site: Site, key: str, trial: int) -> None:
    """Draw the page."""
    try:
        watch = await site.watch(key)
    except RunError as error:
        with frame(site, "No such run") as alerts:
            alerts.say(str(error))
        return
    with frame(site, f"Chat with trial {trial}") as alerts:
        if await asyncio.to_thread(watch.trial, trial) is None:
            alerts.say(f"The run has no trial {trial}.")
            return
        ui.link("Back to the run", f"/run/{quote(key)}?trial={trial}")
        page = _Chat(site, watch, trial, alerts)
        page.refresh()
        ui.timer(FAST, page.refresh)
        ui.timer(SECONDS, lambda: asyncio.to_thread(watch.look))


class _Chat:
    def __init__(self, site: Site, watch: Watch, trial: int, alerts: Alerts) -> None:
        self._site, self._watch, self._trial, self._alerts = site, watch, trial, alerts
        self._box = ui.element("section").props('aria-label="Conversation" aria-live=polite')
        self._box.classes("part")
        self._turns: list[_Turn] = []
        self._said = Part(self._said_text, lambda text: Tag("p", text, "note") if text else None)
        self._text = ui.textarea("Message").props(f"outlined autogrow maxlength={MOST_CHARACTERS}")
        self._text.classes("part").on("keydown.enter", self._send, js_handler=SENDING)
        with ui.element("div").classes("actions"):
            self._send_button = button("Send", self._send)
            self._stop = button("Stop the reply", self._hush, flat=True)
            button("Begin anew", self._forget, flat=True)
            self._load = button("Load the model", self._open, flat=True)
        self._named = Tag("div", "", "dim")
        slider = ui.slider(min=0, max=STRONGEST, step=0.05, value=1.0, on_change=self._moved)
        self._strength = slider.classes("field").props('aria-label="Strength of the edit"')
        self._moved()

    def refresh(self) -> None:
        """Draw what has been said since."""
        turns = self._site.job.talk(self._watch.path, self._trial).turns
        if len(turns) < len(self._turns):
            self._box.clear()
            self._turns = []
        for turn in turns[len(self._turns) :]:
            with self._box:
                self._turns.append(_Turn(turn.prompt, turn.strength))
        for drawn, turn in zip(self._turns, turns, strict=True):
            drawn.show(turn.original, turn.edited, turn.note)
        waits = bool(turns) and not turns[-1].done
        is_open = self._site.job.is_open(self._watch.path)
        self._stop.set_visibility(waits)
        self._send_button.set_enabled(is_open and not waits)
        self._load.set_visibility(not is_open and not self._site.job.is_busy)
        self._said.refresh()

    def _said_text(self) -> str:
        job = self._site.job
        if job.is_open(self._watch.path):
            return (
                "A search is on its way: a message waits until its batch is done."
                if job.state.state == "searching"
                else ""
            )
        if self._site.is_held_elsewhere(self._watch):
            return "Another process works on this run, so that its model cannot be loaded here."
        if job.opening:
            return f"Loading: {job.loading}"
        return job.error or "The model of this run is not loaded."

    async def _send(self) -> None:
        def work() -> None:
            strength = float(self._strength.value)
            self._site.job.say(self._watch.path, self._trial, str(self._text.value), strength)
            self._text.value = ""

        await self._alerts.trying(work)
        self.refresh()

    def _hush(self) -> None:
        self._site.job.hush(self._watch.path, self._trial)

    def _forget(self) -> None:
        self._site.job.forget(self._watch.path, self._trial)
        self.refresh()

    async def _open(self) -> None:
        data = self._watch.data
        again = Again(target=target_of(data.manifest) if data is not None else None)
        await self._alerts.trying(
            lambda: self._site.job.go_on(self._watch.path, search=False, settings=again.settings())
        )

    def _moved(self) -> None:
        strength = float(self._strength.value) if hasattr(self, "_strength") else 1.0
        self._named.text = f"Strength of the edit: {strength:.2f} (0 is the original, 1 the trial)"


SENDING = "(event) => { if (!event.shiftKey) { event.preventDefault(); emit() } }"
"""Enter sends, Shift and Enter begin a line."""


class _Turn:
    """A message and two replies, drawn once; later pieces change their texts only."""

    def __init__(self, prompt: str, strength: float) -> None:
        Tag("div", prompt, "prompt")
        with ui.element("div").classes("two"):
            self._original = _reply("original")
            self._edited = _reply(f"edited, strength {strength:.2f}")
        self._note = Tag("p", "", "dim note")

    def show(self, original: str, edited: str, note: str) -> None:
        """Show what there is by now."""
        for tag, text in (
            (self._original, original),
            (self._edited, edited),
            (self._note, note),
        ):
            tag.say(text)


def _reply(name: str) -> Tag:
    with ui.element("div"):
        Tag("div", name, "dim")
        return Tag("div", "", "reply")
