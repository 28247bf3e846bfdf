"""Errors a user can fix. Everything else that escapes is a bug and keeps its traceback."""

from __future__ import annotations


class HereticError(Exception):
    """Something the user can mend: said in one line, with the remedy, exit status 2.

    Args:
        message: What was wrong, and where.
        remedy: What to do about it.
    """

    exit_status = 2

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message


class SettingsError(HereticError):
    """A setting is unknown, malformed or contradicts another."""


class PromptError(HereticError):
    """A prompt set cannot be read, or is empty."""


class ModelError(HereticError):
    """A model cannot be found, loaded or run."""


class UnsupportedModelError(ModelError):
    """The model loads, but what writes to its residual stream is not known."""


class ScorerError(HereticError):
    """A scorer cannot be found, configured or evaluated."""


class RunError(HereticError):
    """A run folder is locked, damaged, or written by a newer version."""


class StudyError(HereticError):
    """The search cannot go on."""


class ExportError(HereticError):
    """A model cannot be saved, uploaded or reproduced."""
