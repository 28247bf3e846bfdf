"""The log file of a run folder: what the display shows, with times, and tracebacks."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from heretic.events import (
    EvaluationProgress,
    Event,
    Notice,
    SearchFinished,
    SearchStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    TrialFinished,
    TrialStarted,
)
from heretic.records.trial import Score
from heretic.system.display import count_of, safe, safe_line
from heretic.system.files import open_own, refuse_link

logger = logging.getLogger("heretic")


class LogReporter:
    """Writes events to the log, one line each; progress inside a stage is left out."""

    def emit(self, event: Event) -> None:
        """Write one event; a notice at its level, everything else as information."""
        match event:
            case Notice(text=text, level="warning"):
                logger.warning(text)
            case Notice(text=text):
                logger.info(text)
            case StageStarted(title=title):
                logger.info("%s ...", title)
            case StageFinished(summary=summary):
                logger.info("... %s", summary or "done")
            case SearchStarted():
                logger.info("Search: %s trials", count_of(event.completed, event.n_trials))
            case TrialFinished(trial=trial):
                scores = ", ".join(f"{score.name} {_figure(score)}" for score in trial.scores)
                outcome = scores or f"failed: {trial.failure}"
                logger.info("Trial %d: %s (%.1f s)", trial.number, outcome, trial.seconds)
            case SearchFinished():
                logger.info("Search %s after %d trials", event.reason, event.completed)
            case StageProgress() | EvaluationProgress() | TrialStarted():
                pass


class _OwnFile(logging.FileHandler):
    """A log that is never written into a file elsewhere.

    Where it cannot be written, such as on a full disk, this is said once and the work goes on.
    """

    _is_broken = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one entry."""
        if self._is_broken:
            return
        try:
            super().emit(record)
        except OSError:  # it cannot be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Say what is wrong with the file; other errors are those of the program."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._is_broken = True
        reason = error.strerror or str(error)
        text = f"Warning: the log {self.baseFilename} cannot be written: {reason}. "
        with suppress(OSError, ValueError):  # nor can standard error
            sys.stderr.write(safe_line(f"{text}The work goes on without it.") + "\n")

    def close(self) -> None:
        """Close the file; what a full disk did not take is lost."""
        with suppress(OSError):
            super().close()

    def _open(self) -> TextIOWrapper:
        return TextIOWrapper(
            os.fdopen(
                open_own(Path(self.baseFilename), os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab"
            ),
            encoding=self.encoding,
            errors=self.errors,
            line_buffering=True,
        )


class SafeFormatter(logging.Formatter):
    """Keeps secrets and control characters out of the log, and every message in one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """The message with its time, in one line: a line break could forge another entry."""
        return safe_line(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The message and its traceback."""
        return safe(super().format(record))


@contextmanager
def logging_to(path: Path) -> Iterator[LogReporter]:
    """Append to the log file at `path` while the context lasts; what ends it early is logged.

    Raises:
        RunError: The path is a link.
    """
    refuse_link(path)
    handler = _OwnFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield LogReporter()
    except BaseException as error:
        logger.exception("Ended by %s", type(error).__name__)
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
        logger.propagate = propagate


def _figure(score: Score) -> str:
    return score.display if score.bound or score.withheld else f"{score.value:.6g}"
