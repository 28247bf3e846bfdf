"""The chosen trial of a run: scores, plan, weights over layers, replies, requests about it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nicegui import ui

from heretic.system.display import bytes_text
from heretic.ui.charts import layers_options
from heretic.ui.pages.parts import Alerts, Part, Tag, button, table
from heretic.ui.pages.requests import ask_save, ask_score, ask_upload
from heretic.ui.site import Site
from heretic.ui.task import Asked, Task, sampling
from heretic.ui.views import Exchange, Line, TrialView, score_rows, task_exchanges, trial_of
from heretic.ui.watch import Watch

WAITS = "A request waits at most until the search has finished its batch."


@dataclass(frozen=True, slots=True)
class TaskView:
    """A request about a trial, as it is shown."""

    kind: str
    title: str
    error: str
    is_over: bool
    told: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    warnings: tuple[str, ...] = ()


def task_view(task: Task, trial: int) -> TaskView:
    """What a request has brought so far."""
    found: Mapping[str, Any] = task.result or {}
    rows: tuple[tuple[str, ...], ...] = ()
    if task.kind == "score" and found:
        rows = score_rows({"original": found["before"], "edited": found["after"]})
    elif task.kind == "save" and found:
        files = found.get("gguf", {}).get("files", ())
        rows = score_rows({**found["rows"], **{one["type"]: one["scores"] for one in files}})
    return TaskView(
        task.kind,
        task.title,
        task.error,
        task.is_over,
        _told(found),
        rows,
        task_exchanges(found, trial) if task.kind == "sample" and found else (),
        tuple(map(str, found.get("warnings", ()))),
    )


def _told(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Where something is now."""
    lines = []
    if "folder" in found:
        lines.append(f"Saved in {found['folder']}.")
    if "url" in found:
        lines.append(f"Uploaded to {found['url']}")
    if gguf := found.get("gguf"):
        files = ", ".join(f"{one['file']} ({bytes_text(one['size'])})" for one in gguf["files"])
        lines += [f"For llama.cpp, in {gguf['folder']}: {files}.", *gguf["survival"]]
    return tuple(lines)


class TrialPanel:
    """What stands below the front; `refresh` says of which trial."""

    def __init__(self, site: Site, watch: Watch, key: str, alerts: Alerts) -> None:
        self._site, self._watch, self._key, self._alerts = site, watch, key, alerts
        self._number: int | None = None
        self._version: tuple[int | None, ...] = ()
        self._view: TrialView | None = None
        with ui.element("section").props('aria-label="The chosen trial"').classes("part"):
            self._head = Part(self._label, _draw_head)
            self._actions = Part(self._is_open, self._draw_actions)
            # What was asked for is seen where it was asked, not below all that is known already.
            self._tasks = Part(self._task_views, _draw_tasks)
            self._part = Part(lambda: self._view, _draw_trial)
            self._weights, self._sizes = _Lines("ablation weight"), _Lines("|dW| / |W|")
            self._replies = Part(lambda: self._view, _draw_replies)

    async def refresh(self, number: int | None, labels: Mapping[int, str]) -> None:
        """Show that trial, or none, as it is now.

        Args:
            labels: As of the table of the front.
        """
        watch = self._watch
        version = (number, watch.trials_version, watch.reads)
        if version != self._version:
            self._version = version
            view = (
                None if number is None else await asyncio.to_thread(trial_of, watch, number, labels)
            )
            if version != self._version:  # another was chosen meanwhile
                return
            self._view = view
            self._number = None if view is None else number
            self._head.refresh()
            self._part.refresh()
            self._weights.show(view.weights if view is not None else ())
            self._sizes.show(view.sizes if view is not None else ())
            self._replies.refresh()
        self._actions.refresh()
        self._tasks.refresh()

    def _label(self) -> str:
        return self._view.label if self._view is not None else ""

    def _is_open(self) -> tuple[int | None, bool]:
        return self._number, self._site.job.is_open(self._watch.path)

    def _task_views(self) -> tuple[TaskView, ...]:
        number = self._number
        if number is None:
            return ()
        found = self._site.job.tasks_of(self._watch.path, number)
        return tuple(task_view(task, number) for task in found[:6])

    def _draw_actions(self, found: tuple[int | None, bool]) -> None:
        number, is_open = found
        if number is None:
            return
        with ui.element("div").classes("actions"):
            if not is_open:
                Tag(
                    "p",
                    "To chat with this trial, to score or to save it, load the model above.",
                    "dim",
                )
                return
            ui.link("Chat", f"/run/{quote(self._key)}/chat/{number}")
            button("Sample replies", lambda: self._sample(number), flat=True)
            button("Score again", lambda: ask_score(number, self._ask), flat=True)
            button("Save", lambda: ask_save(number, self._site.places, self._ask))
            button("Upload", lambda: ask_upload(number, self._ask), flat=True)
        Tag("p", WAITS, "dim")

    async def _sample(self, number: int) -> None:
        await self._alerts.trying(lambda: self._ask(sampling(number)))

    def _ask(self, asked: Asked) -> None:
        """Ask the worker.

        Raises:
            HereticError: It cannot be asked.
        """
        if self._number is not None:
            self._site.job.ask(self._watch.path, self._number, asked)
        self._tasks.refresh()


def _draw_head(label: str) -> None:
    if label:
        Tag("h2", label[0].upper() + label[1:])


class _Lines:
    """A chart over layers. It stays on the page, hidden where it has no lines.

    NiceGUI's chart is ready a moment after it has been drawn, and removing it before raises an
    error in the browser.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        with ui.element("div") as self._place:
            Tag("h3", f"Over layers: {title}")
            self._chart = ui.echart(layers_options((), title)).classes("chart low")
            self._chart.props('role="img"').props["aria-label"] = f"{title} over layers"
        self._place.set_visibility(False)

    def show(self, lines: Sequence[Line]) -> None:
        self._chart.options.update(layers_options(lines, self._title))
        self._chart.update()
        self._place.set_visibility(bool(lines))


def _draw_trial(view: TrialView | None) -> None:
    if view is None:
        return
    with ui.element("div").classes("two"):
        with ui.element("div"):
            Tag("h3", "Scores, with 95% intervals")
            table(("", "this trial", "original"), view.scores, "Scores of the trial")
        with ui.element("div"):
            Tag("h3", "What it edits")
            table(("", ""), view.plan, "The plan of the trial")


def _draw_replies(view: TrialView | None) -> None:
    if view is not None and view.exchanges:
        Tag("h3", "Replies that the search has kept")
        draw_exchanges(view.exchanges)


def draw_exchanges(exchanges: Sequence[Exchange]) -> None:
    """Prompts with their replies, side by side."""
    for one in exchanges:
        Tag("div", one.prompt, "prompt")
        with ui.element("div").classes("two"):
            for said in one.replies:
                with ui.element("div"):
                    label = f" ({said.label})" if said.label else ""
                    Tag("div", f"{said.model}{label}", "dim")
                    Tag("div", said.text, "reply")


def _draw_tasks(views: Sequence[TaskView]) -> None:
    for view in views:
        with ui.element("div").classes("card"):
            Tag("h3", view.title)
            if not view.is_over:
                Tag("p", "It waits for its turn, or is being carried out.", "dim")
            if view.error:
                Tag("p", view.error, "note")
            for line in view.told:
                Tag("p", line, "note")
            if view.rows:
                table(view.rows[0], view.rows[1:], view.kind)
            for warning in view.warnings:
                Tag("p", warning, "note")
            draw_exchanges(view.exchanges)
