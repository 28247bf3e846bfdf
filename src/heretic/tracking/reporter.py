"""A reporter that hands figures to the process of a tracker, and never waits for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from heretic.errors import SettingsError
from heretic.events import (
    BROKEN_OFF,
    Event,
    Notice,
    Reporter,
    SearchFinished,
    Several,
    StageFinished,
    StageStarted,
)
from heretic.system.display import safe_line
from heretic.system.optional import installed
from heretic.system.secrets import ENVIRONMENT_PREFIX
from heretic.tracking.figures import figures_in, figures_of

LAST_SECONDS = 60.0
"""For sending what is left when the search has ended; what is left after that is lost. MLflow took
28 s to make its first database on two busy cores."""

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""What keeps the libraries from telling their makers of their use."""

DISTRIBUTIONS = {"wandb": ("wandb",), "mlflow": ("mlflow-skinny", "mlflow")}
"""By the values of the setting `track`, distributions that have it."""

_SHOWN = 200


class TrackOptions(Protocol):
    """The settings of the same names."""

    @property
    def track(self) -> str | None:
        """The tracker."""

    @property
    def track_address(self) -> str | None:
        """The address of its server."""


def check_tracker(options: TrackOptions) -> None:
    """Say before any work that a tracker is not installed, or that an address has none.

    Raises:
        SettingsError: So it is.
    """
    if options.track is None:
        if options.track_address:
            raise SettingsError(
                "track_address names a server, and track no tracker.",
                remedy="Set track to wandb or mlflow.",
            )
        return
    # A module is not looked for: offline, `wandb` leaves a folder of that name where the user is.
    if not any(map(installed, DISTRIBUTIONS[options.track])):
        raise SettingsError(
            f"track is {options.track}, and the package {options.track} is not installed.",
            remedy="In the folder of Heretic's source: pip install '.[track]'",
        )


@contextmanager
def tracking(
    options: TrackOptions,
    identify: Callable[[], str],
    settings: Mapping[str, Any],
    reporter: Reporter,
    *,
    last_seconds: float = LAST_SECONDS,
) -> Iterator[Reporter]:
    """The reporter of one search: it hands figures to a tracker as well, if one is set.

    Args:
        identify: Gives the run's id for trackers; called if a tracker is set.
        settings: All settings, of which the tracker is told the plain figures.
        reporter: The search's own; it shows a warning if the tracker fails, once.

    Raises:
        SettingsError: As `check_tracker`.
    """
    check_tracker(options)
    if options.track is None:
        yield reporter
        return
    run = identify()
    with ExitStack() as stack:
        tracker = _started(options.track, reporter, stack)
        if tracker is None:
            yield reporter
            return
        tracker.send(
            {
                "service": options.track,
                "run": run,
                "folder": str(Path.cwd()),
                "address": options.track_address or "",
                "settings": figures_in(settings),
            }
        )
        try:
            yield Several(reporter, tracker)
        finally:
            tracker.end(last_seconds)


def _started(name: str, reporter: Reporter, stack: ExitStack) -> _Tracker | None:
    """A tracker's process, whose files the stack deletes; None if it cannot be started."""
    try:
        # In an empty folder: some trackers take their server's address from files around them.
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        return _Tracker(name, Path(stack.enter_context(folder)), errors, reporter)
    except OSError as error:
        said = safe_line(str(error))[:_SHOWN]
        text = f"The tracker {name} cannot be started: {said}. The search goes on."
        reporter.emit(Notice(text, level="warning"))
        return None


class _Tracker:
    """Writes figures to a pipe that never blocks."""

    def __init__(self, name: str, folder: Path, errors: Any, reporter: Reporter) -> None:
        self._name, self._errors, self._reporter = name, errors, reporter
        self._is_over = False
        self._reason: str | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "heretic.tracking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=folder,
            # Its settings come by the pipe; some of the variables hold secrets.
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)},
                **QUIET,
            },
            start_new_session=os.name != "nt",  # Ctrl+C ends the search, which ends the tracker
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        if hasattr(os, "set_blocking"):
            os.set_blocking(self._pipe.fileno(), False)

    def emit(self, event: Event) -> None:
        """Hand on the event's figures, if it has any."""
        if isinstance(event, SearchFinished):
            self._reason = event.reason
        found = figures_of(event)
        if found:
            self.send(found)

    def send(self, message: Mapping[str, Any]) -> None:
        """Write a message; the tracker is given up if it does not take it."""
        if self._is_over:
            return
        line = json.dumps(message).encode() + b"\n"
        try:
            written = os.write(self._pipe.fileno(), line)
        except BlockingIOError:
            self._give_up("it takes no more figures")
            return
        except OSError:  # it has ended
            self._give_up(self._said())
            return
        if written < len(line):
            self._give_up("it takes no more figures")

    def end(self, seconds: float) -> None:
        """Let it send what is left, for so many seconds at most; no process is left behind."""
        try:
            self.send({"reason": self._reason or "interrupted"})
            with suppress(OSError):
                self._pipe.close()
            if not self._is_over:
                self._wait(seconds)
        finally:
            self._kill()

    def _wait(self, seconds: float) -> None:
        self._reporter.emit(
            StageStarted(f"Sending the last figures to {self._name}, {seconds:g} s at most")
        )
        summary = BROKEN_OFF
        try:
            status = self._process.wait(seconds)
            summary = ""
        except subprocess.TimeoutExpired:
            self._give_up(f"it did not end within {seconds:g} s")
            return
        finally:
            self._reporter.emit(StageFinished(summary))
        if status:
            self._give_up(self._said())

    def _kill(self) -> None:
        """End the process, and what it has started, if it has not ended by itself."""
        if self._process.poll() is not None:
            return
        if os.name == "nt":
            self._process.kill()
        else:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _said(self) -> str:
        """The last line of what it wrote to standard error."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it ended")
        return safe_line(last)[:_SHOWN]

    def _give_up(self, reason: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        text = f"The tracker {self._name} gets no more figures: {reason.rstrip('.')}."
        goes_on = "" if self._reason else " The search goes on."
        self._reporter.emit(Notice(f"{text}{goes_on}", level="warning"))
