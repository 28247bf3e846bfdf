"""The one worker of the page: what it does, what it was asked, and what it has answered.

All tabs share it. Closing a tab changes nothing here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heretic.errors import HereticError
from heretic.system.display import safe
from heretic.ui.talk import MOST_CHARACTERS, Talk, Turn
from heretic.ui.task import Asked, Task
from heretic.worker.client import WorkerGoneError, WorkerProcess
from heretic.worker.protocol import (
    Chat,
    Inspect,
    Open,
    Pause,
    Preview,
    Request,
    Resume,
    Search,
    State,
    Stop,
)

NONE = State(state="stopped")
ACTIVE = ("loading", "searching", "paused")
"""States in which a worker must not be replaced by another."""

PATIENCE = 24 * 3600.0
"""Seconds for which the end of a batch, or of saving, is waited for."""


@dataclass
class Job:
    """The worker, or none.

    Attributes:
        folder: Working folder of workers.
        runs: Folder of the run folders, whatever other places call it.
        state: The worker's; `stopped` without one.
        run: Folder of the run that is, or was last, open.
        opening: What is being opened, for people; empty if nothing is.
        loading: The stage before the run folder is known.
        limit: The time limit of the search that is, or was last, begun; empty for none.
        ending: Whether the worker is being ended.
        error: What went wrong last; empty if nothing did.
        version: Grows with every change.
    """

    folder: Path
    runs: Path
    state: State = NONE
    run: Path | None = None
    opening: str = ""
    loading: str = ""
    limit: str = ""
    ending: bool = False
    error: str = ""
    version: int = 0
    tasks: dict[tuple[Path, int], list[Task]] = field(default_factory=dict)
    talks: dict[tuple[Path, int], Talk] = field(default_factory=dict)
    _worker: WorkerProcess | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _is_stopped: bool = False
    _system: str | None = None
    _begins: asyncio.Task[None] | None = None
    _running: set[asyncio.Task[None]] = field(default_factory=set)
    _closing: bool = False

    # --- what it is --------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a run is being opened or searched, or something was asked about its trials."""
        # What was asked counts before the worker says that it knows of it.
        is_asking = any(not task.done() for task in self._running)
        asked = is_asking or self.state.doing is not None or self.state.waiting > 0
        works = self.state.state in ACTIVE or (self.state.state == "ready" and asked)
        return bool(self.opening) or works

    def is_open(self, run: Path) -> bool:
        """Whether a living worker has this run open."""
        ready = self.state.state in ("ready", "searching", "paused") and not self.ending
        return ready and not self.opening and self.run == _real(run)

    # --- runs --------------------------------------------------------------------------------

    def begin(self, settings: Mapping[str, Any], *, demo: bool = False) -> None:
        """Open the run of some settings, and search.

        Raises:
            HereticError: Another run is being opened or searched.
        """
        name = "the demo" if demo else str(settings.get("model", ""))
        self._start(name, self.opening_of(settings, demo=demo), search=True)

    def go_on(
        self,
        run: Path,
        *,
        search: bool,
        more: int | None = None,
        limit: str = "",
        settings: Mapping[str, Any] | None = None,
        trust_plugins: bool = False,
    ) -> None:
        """Open a run that exists, and search on if wanted.

        Args:
            search: Whether to search; without, it is opened for chat, scores and saving.
            more: Complete trials to end with, whether the front grows or not; None for what the
                settings say.
            limit: How long the search may take, such as `2h`; empty for no limit if the run is
                open, and else for what the settings say.
            settings: As `Open.settings`; they count if the run is not open yet.
            trust_plugins: As `Open.trust_plugins`.

        Raises:
            HereticError: As `begin`.
        """
        if self.is_open(run) and self.state.state == "ready":  # what was asked before comes first
            self.error = ""
            if search and (self._begins is None or self._begins.done()):
                self._begins = self._spawn(self._search(more, limit))
            return
        named = {**(settings or {}), **({"time_limit": limit} if limit else {})}
        opening = self.opening_of(named, run=run, trust_plugins=trust_plugins)
        self._start(run.name, opening, search=search, more=more)

    def opening_of(
        self,
        settings: Mapping[str, Any],
        *,
        run: Path | None = None,
        demo: bool = False,
        trust_plugins: bool = False,
    ) -> Open:
        """The request that opens a run, which lies in the page's folder of run folders.

        Raises:
            HereticError: The settings name another folder.
        """
        if "study_checkpoint_dir" in settings:
            raise HereticError(
                f"The runs of this page are in {self.runs}.",
                remedy="Leave study_checkpoint_dir out; `heretic ui --runs DIR` takes another.",
            )
        return Open(
            settings={**settings, "study_checkpoint_dir": str(self.runs.absolute())},
            run=None if run is None else str(run),
            demo=demo,
            trust_plugins=trust_plugins,
        )

    def _start(self, name: str, request: Open, *, search: bool, more: int | None = None) -> None:
        self._check_free()
        self.opening, self.error, self.loading = name, "", "Starting"
        self._is_stopped = False
        self.run = _real(Path(request.run)) if request.run is not None else None
        self.version += 1
        self._spawn(self._open(request, search=search, more=more))

    def _check_free(self) -> None:
        if self.is_busy:
            what = self.opening or (self.run.name if self.run else "a run")
            raise HereticError(
                f"This page works on {what}, and on one run at a time.",
                remedy="Stop that one first: nothing of it is lost.",
            )

    async def _search(self, more: int | None, limit: str) -> None:
        await self._ask(Search(n_trials=more, timed=bool(limit), time_limit=limit or None))
        self.limit = limit  # which the worker has accepted
        self.version += 1

    async def _open(self, request: Open, *, search: bool, more: int | None) -> None:
        try:
            if self.state.state not in ("starting", "idle"):
                await self._end()
            self._check_wanted()
            worker = await self._alive()
            self._check_wanted()
            found = await worker.request(request)
            self.run = _real(Path(found["run"]))
            self._system = found["settings"].get("system_prompt")
            self.limit = str(found["settings"].get("time_limit") or "")
            # A stop that came after the last step of the opening is none for the worker.
            if search and not self._is_stopped:
                await worker.request(Search(n_trials=more))
        finally:
            self.opening = self.loading = ""
            self.version += 1

    def _check_wanted(self) -> None:
        if self._is_stopped:
            raise HereticError("The opening was given up.")

    async def pause(self) -> None:
        """Hold the search after its batch."""
        await self._ask(Pause())

    async def resume(self) -> None:
        """Let a paused search go on."""
        await self._ask(Resume())

    async def stop(self) -> None:
        """End the search after its batch, or the opening of a run at its next step."""
        if not self.opening:
            await self._ask(Stop())
            return
        self._is_stopped = True
        with suppress(HereticError):  # the worker has not begun to open the run, or has done so
            await self._ask(Stop())

    async def unload(self) -> None:
        """End the worker, which frees the memory of its model.

        Raises:
            HereticError: It works on something.
        """
        self._check_free()
        self.error = ""
        await self._end()

    # --- models and prompts before a run -----------------------------------------------------

    async def inspect(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What would be edited, and the memory of a search.

        Raises:
            HereticError: It cannot be told.
        """
        return await (await self._alive()).request(Inspect(settings=dict(settings)))

    async def preview(self, settings: Mapping[str, Any], first: int = 5) -> dict[str, Any]:
        """The first prompts of each set.

        Raises:
            HereticError: A set cannot be read.
        """
        worker = await self._alive()
        return await worker.request(Preview(settings=dict(settings), first=first))

    # --- trials ------------------------------------------------------------------------------

    def ask(self, run: Path, trial: int, asked: Asked) -> None:
        """Ask for something about a trial.

        Raises:
            HereticError: The run is not open, or the same place is being written to.
        """
        task, request = asked
        self._check_open(run)
        known = (one for tasks in self.tasks.values() for one in tasks)
        if task.place is not None and any(
            one.place == task.place and not one.is_over for one in known
        ):
            doing = "uploaded" if task.kind == "upload" else "saved"
            raise HereticError(
                f"A model is being {doing} to {task.place} already.", remedy="Name another place."
            )
        self.tasks.setdefault((_real(run), trial), []).append(task)
        self.version += 1
        self._spawn(self._carry_out(task, request))

    def tasks_of(self, run: Path, trial: int) -> list[Task]:
        """What was asked about a trial, the last first."""
        return list(reversed(self.tasks.get((_real(run), trial), [])))

    def _check_open(self, run: Path) -> None:
        if not self.is_open(run):
            raise HereticError(
                "The model of this run is not loaded.", remedy="Load it first, or go on with it."
            )

    async def _carry_out(self, task: Task, request: Request) -> None:
        try:
            task.result = await self._living().request(request)
        except HereticError as error:
            task.error = safe(str(error))
        except BaseException:
            task.error = "It was given up."
            raise
        finally:
            self.version += 1

    # --- chat --------------------------------------------------------------------------------

    def talk(self, run: Path, trial: int) -> Talk:
        """The conversation with a trial."""
        return self.talks.setdefault((_real(run), trial), Talk())

    def say(self, run: Path, trial: int, text: str, strength: float) -> None:
        """Send a message to the original and to the trial; the replies come into the talk.

        Raises:
            HereticError: The run is not open, a reply is on its way, or the message is too long.
        """
        self._check_open(run)
        talk = self.talk(run, trial)
        if talk.turns and not talk.turns[-1].done:
            raise HereticError("A reply is on its way.", remedy="Wait for its end, or stop it.")
        if not text.strip() or len(text) > MOST_CHARACTERS:
            raise HereticError(f"A message has 1 to {MOST_CHARACTERS} characters.")
        turn = Turn(text, strength)
        talk.turns.append(turn)
        self.version += 1
        task = self._spawn(self._reply(talk, turn, trial))
        task.add_done_callback(lambda _: self._ended(turn))
        self._replies[id(turn)] = task

    def hush(self, run: Path, trial: int) -> None:
        """End the reply that is on its way."""
        for turn in self.talk(run, trial).turns:
            if not turn.done and (task := self._replies.get(id(turn))):
                turn.note = "Stopped."
                task.cancel()

    def forget(self, run: Path, trial: int) -> None:
        """Begin a conversation anew."""
        self.hush(run, trial)
        self.talks[_real(run), trial] = Talk()
        self.version += 1

    _replies: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    def _ended(self, turn: Turn) -> None:
        self._replies.pop(id(turn), None)
        turn.done = True
        self.version += 1

    async def _reply(self, talk: Talk, turn: Turn, trial: int) -> None:
        try:
            worker = self._living()
            for edited in (False, True):
                request = Chat(
                    messages=talk.messages(edited=edited, system=self._system),
                    trial=trial if edited else None,
                    strength=turn.strength if edited else 1.0,
                )
                async for piece in worker.stream(request):
                    if edited:
                        turn.edited += piece
                    else:
                        turn.original += piece
                    self.version += 1
        except HereticError as error:
            turn.note = safe(str(error))

    # --- the process -------------------------------------------------------------------------

    async def close(self) -> None:
        """End the worker after its batch; everything is kept."""
        self._closing = True
        await self._end()

    async def _alive(self) -> WorkerProcess:
        """The worker, which is started if there is none; one at a time, whoever asks."""
        async with self._turn:
            if self._worker is None or not self._worker.is_alive:
                if self._closing:
                    raise HereticError("The page is being closed.")
                self._worker = await WorkerProcess.start(folder=self.folder)
                self._worker.on_state = self._changed
                self._worker.on_event = self._told
                self._changed(self._worker.state)
            return self._worker

    def _living(self) -> WorkerProcess:
        """The worker.

        Raises:
            HereticError: There is none, and a new one would have nothing open.
        """
        if self._worker is None or not self._worker.is_alive:
            raise HereticError("No model is loaded.", remedy="Load it, or begin a search.")
        return self._worker

    async def _end(self) -> None:
        self.ending = True  # at once: nothing is asked of this worker any more
        try:
            async with self._turn:
                worker, self._worker = self._worker, None
                if worker is not None:
                    worker.on_state = None
                    self.state = NONE
                    self.version += 1
                    self.state = await worker.terminate(patience=PATIENCE)
        finally:
            self.ending = False
            self.version += 1

    async def _ask(self, request: Request) -> None:
        await self._living().request(request)

    def _changed(self, state: State) -> None:
        if state.state == "dead" and self.state.state != "dead" and self._worker is not None:
            lines = "\n".join(self._worker.last_lines(8))
            told = f"The worker has ended unexpectedly (status {state.status})."
            self.error = safe(f"{told} What the run has so far is kept; go on with it.\n{lines}")
        self.state = state
        self.version += 1
        if state.run is not None:
            self.run = _real(Path(state.run))

    def _told(self, row: Mapping[str, Any]) -> None:
        text = row.get("title") or row.get("text")
        if isinstance(text, str):
            self.loading = safe(text)
            self.version += 1

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        with suppress(asyncio.CancelledError):
            error = task.exception()
            if isinstance(error, WorkerGoneError) and self.error:
                return  # which says why
            if isinstance(error, HereticError):
                self.error = safe(str(error))
                self.version += 1
            elif error is not None:
                raise error


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
