"""A reporter that hands figures to the process of a tracker, and never waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from heretic.errors import SettingsError
from heretic.events import Event, Notice, Reporter
from heretic.system.display import safe_line
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
    if find_spec(options.track) is None:
        raise SettingsError(
            f"track is {options.track}, and the package {options.track} is not installed.",
            remedy="In the folder of Heretic's source: pip install '.[track]'",
        )


@contextmanager
def tracking(
    options: TrackOptions,
    run: str,
    settings: Mapping[str, Any],
    reporter: Reporter,
    *,
    last_seconds: float = LAST_SECONDS,
) -> Iterator[tuple[Reporter, ...]]:
    """A tracker's reporter while the context lasts; none if no tracker is set.

    Args:
        run: The run's digest.
        settings: All settings, of which the tracker is told the plain figures.
        reporter: Shows a warning if the tracker fails; it is shown once.
    """
    if options.track is None:
        yield ()
        return
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        # In an empty folder: some trackers take their server's address from files around them.
        tracker = _Tracker(options.track, Path(folder), errors, reporter)
        tracker.send(
            {
                "service": options.track,
                "run": run,
                "folder": str(Path.cwd()),
                "address": options.track_address or "",
                "settings": figures_in(settings),
            }
        )
        complete = False
        try:
            yield (tracker,)
            complete = True
        finally:
            tracker.end(complete=complete, seconds=last_seconds)


class _Tracker:
    """Writes figures to a pipe that never blocks."""

    def __init__(self, name: str, folder: Path, errors: Any, reporter: Reporter) -> None:
        self._name, self._errors, self._reporter = name, errors, reporter
        self._is_over = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "heretic.tracking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=folder,
            env={**os.environ, **QUIET},
            start_new_session=os.name != "nt",  # Ctrl+C ends the search, which ends the tracker
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        if hasattr(os, "set_blocking"):
            os.set_blocking(self._pipe.fileno(), False)

    def emit(self, event: Event) -> None:
        """Hand on the event's figures, if it has any."""
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

    def end(self, *, complete: bool, seconds: float) -> None:
        """Let it send what is left, for so many seconds at most."""
        self.send({"complete": complete})
        with suppress(OSError):
            self._pipe.close()
        try:
            status = self._process.wait(0 if self._is_over else seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._give_up(f"it did not end within {seconds:g} s")
            return
        if status:
            self._give_up(self._said())

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
        text = f"The tracker {self._name} gets no more figures: {reason.rstrip('.')}. "
        self._reporter.emit(Notice(f"{text}The search goes on.", level="warning"))
