"""What every question about a run's trials needs: the answers given, where to ask and to print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rich.console import RenderableType
from rich.text import Text

from heretic.cli.display.text import print_command
from heretic.cli.menu.answers import Answers, program_arguments, way_on
from heretic.cli.menu.questions import Prompter, Unanswered, terminal_prompter
from heretic.cli.signals import is_ending
from heretic.records.options import options_of
from heretic.records.trial import Score
from heretic.system.display import safe

if TYPE_CHECKING:
    from heretic.cli.display.reporter import Display
    from heretic.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What the settings answer, and where everything else is asked and shown.

    Attributes:
        answers: What the settings answer.
        model: The model's name, for the default destination.
        argv: The command as given, program name included; the command that goes on is made from it.
        display: Where everything is shown; it is closed before a question.
        baseline: Scores of the unedited model, shown above the front.
        prompter: Asks the user; None without a terminal.
    """

    answers: Answers
    model: str
    argv: Sequence[str]
    display: Display
    baseline: Sequence[Score] = ()
    prompter: Prompter | None = None

    @classmethod
    def of_command(cls, settings: Settings, display: Display, baseline: Sequence[Score]) -> Self:
        """The dialogue of this command, on the terminal if there is one."""
        return cls(
            answers=options_of(Answers, settings),
            model=settings.model,
            argv=program_arguments(),
            display=display,
            baseline=baseline,
            prompter=terminal_prompter(),
        )

    def ask(self) -> Prompter:
        """The prompter, with nothing else on the screen.

        Raises:
            Unanswered: There is no terminal, or no longer.
        """
        if self.prompter is None or is_ending():
            raise Unanswered
        self.display.close()
        return self.prompter

    def say(self, text: str, style: str = "") -> None:
        """Print a line, never read as markup."""
        self.display.close()
        self.display.console.print(Text(safe(text), style=style), soft_wrap=True)

    def show(self, table: RenderableType) -> None:
        """Print a table below an empty line."""
        self.display.close()
        self.display.console.print()
        self.display.console.print(table)

    def say_way_on(self, heading: str) -> None:
        """Print the command that goes on from here, with a value for every open question."""
        self.display.close()
        print_command(self.display.console, heading, way_on(self.argv, self.answers, self.model))
