"""Errors that a user can fix. Any other exception that escapes is a bug and keeps its traceback."""

from __future__ import annotations

import logging

# A library prints nothing unless it is asked to. It is said here because whatever logs imports this
# module: the package itself imports nothing, so that a signal finds its handler at once.
logging.getLogger("heretic").addHandler(logging.NullHandler())


class HereticError(Exception):
    """An error that the user can fix. It is shown in one line with its remedy; exit status 2.

    Args:
        message: What is wrong, and where.
        remedy: What to do about it.
    """

    exit_status = 2

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        message = " ".join(message.split("\n"))  # names and values in it may hold line breaks
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message


class SettingsError(HereticError):
    """A setting is unknown, malformed, or contradicts another setting."""


class PromptError(HereticError):
    """A prompt set cannot be read, or is empty."""


class ModelError(HereticError):
    """A model cannot be found, loaded or run."""


class UnsupportedModelError(ModelError):
    """The model loads, but Heretic does not know which modules write to its residual stream."""


class ScorerError(HereticError):
    """A scorer cannot be found, configured or evaluated."""


class RunError(HereticError):
    """A run folder is locked, damaged, or written by a newer version."""


class StudyError(HereticError):
    """The search cannot continue."""


class ExportError(HereticError):
    """A model cannot be saved, uploaded or reproduced."""


class AuditError(ExportError):
    """A saved model is not what its plan and its documents say. Its files stay; exit status 1."""

    exit_status = 1


def reason(error: Exception) -> str:
    """An error in one sentence; of a bug or a library's error, with its type."""
    return str(error) if isinstance(error, HereticError) else f"{type(error).__name__}: {error}"


def is_of_interruption(error: BaseException) -> bool:
    """Whether an error is an interruption, or what a library made of one.

    A failed import may lead to it. Compiled libraries, such as pydantic's, keep of it no more than
    its name in the message of their own error.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        if isinstance(current, KeyboardInterrupt) or "KeyboardInterrupt" in str(current):
            return True
        seen.add(id(current))
        waiting += [current.__cause__, current.__context__]
    return False
