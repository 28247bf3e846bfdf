"""Asking on the terminal. Ctrl+C or Ctrl+D at a question raises `Back`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console

from heretic.cli.display.text import is_interactive
from heretic.system.display import safe_line

Check = Callable[[str], str | None]
"""Takes what was typed; returns what is wrong with it, or None."""


class Back(Exception):  # noqa: N818 - not an error: the user wants to leave the question
    """The user pressed Ctrl+C or Ctrl+D at a question, to go one level up."""


class Unanswered(Exception):  # noqa: N818 - it ends the menu and is not an error
    """A question that no setting answers, with nobody at the terminal to ask, or no longer."""


@dataclass(frozen=True, slots=True)
class Option:
    """One answer of a `select` or `checkbox` question."""

    value: Any
    label: str


class Prompter(Protocol):
    """Asks one question at a time; every method may raise `Back` or `Unanswered`."""

    def select(self, question: str, options: Sequence[Option], default: Any = None) -> Any:
        """The value of the option chosen; that of `default` is offered first."""

    def checkbox(self, question: str, options: Sequence[Option]) -> list[Any]:
        """The values of the options ticked; at least one."""

    def text(self, question: str, default: str = "", check: Check | None = None) -> str:
        """A line of text, without white space around it."""

    def path(self, question: str, default: str = "") -> str:
        """A folder name, completed with the tab key."""

    def confirm(self, question: str, default: bool = False) -> bool:
        """Whether the user says yes."""


class TerminalPrompter:
    """Asks through questionary, on a terminal."""

    def select(self, question: str, options: Sequence[Option], default: Any = None) -> Any:
        """The value of the option chosen with the arrow keys, which begin at `default`."""
        import questionary

        choices = [questionary.Choice(safe_line(option.label), option) for option in options]
        # questionary gives the option back rather than its value: a value of None would be
        # replaced by the label.
        pairs = zip(choices, options, strict=True)
        first = next((choice for choice, option in pairs if option.value == default), None)
        chosen = _ask(lambda: questionary.select(question, choices, default=first))
        return chosen.value

    def checkbox(self, question: str, options: Sequence[Option]) -> list[Any]:
        """The values of the options ticked with the space bar."""
        import questionary

        choices = [questionary.Choice(safe_line(option.label), option) for option in options]

        def some(chosen: list[Any]) -> bool | str:
            return bool(chosen) or "Tick at least one with the space bar."

        keys = "(space ticks, Enter confirms)"
        ticked = _ask(
            lambda: questionary.checkbox(question, choices, validate=some, instruction=keys)
        )
        return [option.value for option in ticked]

    def text(self, question: str, default: str = "", check: Check | None = None) -> str:
        """A line of text; Enter is refused while `check` finds something wrong."""
        import questionary

        def valid(typed: str) -> bool | str:
            problem = check(typed.strip()) if check is not None else None
            return True if problem is None else problem

        answer = _ask(lambda: questionary.text(question, default=default, validate=valid))
        return str(answer).strip()

    def path(self, question: str, default: str = "") -> str:
        """A folder name, completed with the tab key; never empty."""
        import questionary

        def valid(typed: str) -> bool | str:
            return bool(typed.strip()) or "A folder is needed."

        answer = _ask(
            lambda: questionary.path(
                question, default=default, only_directories=True, validate=valid
            )
        )
        return str(answer).strip()

    def confirm(self, question: str, default: bool = False) -> bool:
        """Whether the user types y; Enter alone gives `default`."""
        import questionary

        return bool(_ask(lambda: questionary.confirm(question, default=default)))


def terminal_prompter() -> Prompter | None:
    """The prompter on the terminal; None where there is no terminal."""
    return TerminalPrompter() if is_interactive() else None


def _ask(build: Callable[[], Any]) -> Any:
    """Ask, and turn both ways of leaving a question into `Back`.

    Raises:
        Back: The user pressed Ctrl+C or Ctrl+D.
        Unanswered: The terminal went away, or the process was told to end.
    """
    try:
        return build().unsafe_ask()
    except (KeyboardInterrupt, EOFError, OSError) as left:
        if is_interactive():
            raise Back from left
        Console().show_cursor()  # which the question had no time to do
        raise Unanswered from left
