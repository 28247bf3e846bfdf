"""What happens after the search: choose a trial, then save, upload, chat, benchmark, go on.

Every question looks at its setting first. On a terminal what is left is asked; without one the
front is printed together with the command that goes on from here. The menu knows nothing of
models: what it offers is handed in as `Actions`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from heretic.cli.display.tables import (
    direction_text,
    front_table,
    plan_table,
    scores_table,
    scores_text,
)
from heretic.cli.display.text import is_interactive, safe
from heretic.cli.menu.answers import Answers, way_on
from heretic.cli.menu.details import Details, number_problem
from heretic.cli.menu.questions import Back, Option, Prompter, TerminalPrompter, Unanswered
from heretic.errors import HereticError, SettingsError
from heretic.records.trial import Score, Trial

logger = logging.getLogger(__name__)

_MORE, _EXIT = "more", "exit"


@dataclass(frozen=True, slots=True)
class Actions:
    """What can be done with a trial. Each raises `HereticError` where the user can mend it.

    What `save`, `upload` and `benchmark` return is printed: a line (never read as markup), or a
    table. `more_trials(n)` searches on and returns the new front, also when it was interrupted.
    An action that is None is not offered.
    """

    save: Callable[[Trial, Path, str], RenderableType]
    upload: Callable[[Trial, str, bool, str], RenderableType] | None = None
    chat: Callable[[Trial], None] | None = None
    benchmark: Callable[[Trial, Sequence[str], bool], RenderableType] | None = None
    more_trials: Callable[[int], Sequence[Trial]] | None = None


class Closable(Protocol):
    """A display that can be taken off the screen before a question."""

    def close(self) -> None:
        """Take it off."""


class Menu:
    """The menu after a search.

    Args:
        console: Where everything is shown.
        answers: What the settings answer already.
        actions: What can be done with a trial.
        model: The model's name, for the default destination.
        argv: The command as given, program name included, for the command that goes on from here.
        baseline: Scores of the unedited model, shown above the front.
        prompter: Asks; None if there is no terminal.
        display: Taken off the screen before a question.
    """

    def __init__(
        self,
        console: Console,
        answers: Answers,
        actions: Actions,
        *,
        model: str,
        argv: Sequence[str],
        baseline: Sequence[Score] = (),
        prompter: Prompter | None = None,
        display: Closable | None = None,
    ) -> None:
        self.console = console
        self.answers = answers
        self._given = answers  # `answers` loses what has been used
        self.actions = actions
        self.model = model
        self.argv = argv
        self.baseline = baseline
        self.display = display
        self._prompter = prompter
        self._details = Details(
            answers,
            model,
            asker=self._need_prompter,
            interactive=prompter is not None,
            say=partial(self._say, style="yellow"),
        )
        self.front: list[Trial] = []

    def run(self, front: Sequence[Trial]) -> None:
        """Show the front and do what the settings or the user say, until there is no more to do.

        Raises:
            SettingsError: `trial_index` is no row of the front.
            HereticError: An action failed and there is no terminal to go on with.
            KeyboardInterrupt: An action was interrupted and there is no terminal to go on with.
        """
        self.front = list(front)
        try:
            self._extend_as_set()
            self._show_front()
            if self.answers.model_action != "none":
                self._loop()
        except Unanswered:
            self._say_way_on()
        except Back:
            pass  # Ctrl+C at the outermost question

    def _loop(self) -> None:
        while True:
            chosen = self._choose_trial()
            if chosen == _EXIT:
                return
            if chosen == _MORE:
                self._more()
            elif isinstance(chosen, Trial) and self._trial_menu(chosen):
                return

    # Which trial.

    def _choose_trial(self) -> Trial | str:
        index = self.answers.trial_index
        if index is not None:
            trial = self._row(index)
            self.answers = replace(self.answers, trial_index=None)  # "another trial" asks
            return trial
        prompter = self._need_prompter()
        options = [
            Option(number, line) for number, line in enumerate(front_lines(self.front))
        ] + self._ways_out()
        question = "Which trial?" if self.front else "No trial has completed yet."
        chosen = prompter.select(question, options)
        return self.front[chosen] if isinstance(chosen, int) else str(chosen)

    def _row(self, index: int) -> Trial:
        last = len(self.front) - 1
        if 0 <= index <= last:
            return self.front[index]
        if last < 0:
            raise SettingsError(
                f"trial_index is {index}, but no trial has completed yet.",
                remedy="Continue the search.",
            )
        raise SettingsError(
            f"trial_index is {index}, but the front has the rows 0 to {last}.",
            remedy=f"Give a number from 0 to {last}.",
        )

    def _ways_out(self) -> list[Option]:
        more = [Option(_MORE, "Run more trials")] if self.actions.more_trials else []
        return [*more, Option(_EXIT, "Exit")]

    # What to do with it.

    def _trial_menu(self, trial: Trial) -> bool:
        """Whether the program is to end; else another trial is to be chosen."""
        self._show_trial(trial)
        while True:
            given = self.answers.model_action
            try:
                action = given or self._ask_action(trial)
            except Back:
                return False
            self.answers = replace(self.answers, model_action=None)
            if action == _EXIT:
                return True
            if action == "another":
                return False
            if action == _MORE:
                if self._more():
                    return False
                continue
            done = self._perform(partial(self._act, action, trial))
            if given and done:
                return True  # the settings said what to do, and it is done

    def _ask_action(self, trial: Trial) -> str:
        actions = self.actions
        offered = (
            ("save", "Save the edited model", actions.save),
            ("upload", "Upload it to the Hugging Face Hub", actions.upload),
            ("chat", "Chat with it", actions.chat),
            ("benchmark", "Run benchmarks", actions.benchmark),
        )
        options = [Option(value, label) for value, label, action in offered if action]
        options.append(Option("another", "Choose another trial"))
        question = f"What to do with trial {trial.number}?"
        return str(self._need_prompter().select(question, options + self._ways_out()))

    def _act(self, action: str, trial: Trial) -> RenderableType | None:
        actions, details = self.actions, self._details
        if action == "save":
            return actions.save(trial, details.destination(), details.strategy())
        if action == "upload" and actions.upload is not None:
            return actions.upload(trial, *details.repository(), details.strategy())
        if action == "benchmark" and actions.benchmark is not None:
            return actions.benchmark(trial, *details.benchmarks())
        if action == "chat" and actions.chat is not None:
            actions.chat(trial)
            return None
        raise SettingsError(f"The action {action!r} is not available here.")

    def _perform(self, action: Callable[[], RenderableType | None]) -> bool:
        """Do it and show what came out. On a terminal no failure ends the menu."""
        try:
            self._show(action())
        except Back:
            return False
        except HereticError as error:
            if self._prompter is None:
                raise
            self._say(f"✗ {error}", "red")
        except KeyboardInterrupt:
            if self._prompter is None:
                raise
            self._say("Stopped.", "yellow")
        except Unanswered:
            raise
        except Exception:
            if self._prompter is None:
                raise
            logger.exception("An action of the menu failed")
            self._say_bug()
        else:
            return True
        return False

    # More trials.

    def _extend_as_set(self) -> None:
        number = self.answers.n_additional_trials
        self.answers = replace(self.answers, n_additional_trials=None)
        if number:
            self._perform(partial(self._extend, number))

    def _more(self) -> bool:
        """Ask how many, run them, show the new front; whether that was done."""

        def run() -> None:
            number = self._need_prompter().text("How many more trials?", "50", number_problem)
            self._extend(int(number))
            self._show_front()

        return self._perform(run)

    def _extend(self, number: int) -> None:
        if self.actions.more_trials is None:
            raise SettingsError("This run cannot be searched any further.")
        self.front = list(self.actions.more_trials(number))

    # Showing.

    def _need_prompter(self) -> Prompter:
        if self._prompter is None:
            raise Unanswered
        if self.display is not None:
            self.display.close()
        return self._prompter

    def _show_front(self) -> None:
        if self.display is not None:
            self.display.close()
        if self.front:
            heading = "The front: the best trade-offs found"
            self._print_apart(front_table(self.front, self.baseline, heading=heading))
        else:
            self._say("No trial has completed yet.", "yellow")

    def _show_trial(self, trial: Trial) -> None:
        if self.baseline:
            rows = {"original": self.baseline, f"trial {trial.number}": trial.scores}
            self._print_apart(scores_table(rows, label=""))
        self._print_apart(plan_table(trial.plan))

    def _print_apart(self, table: Table) -> None:
        self.console.print()
        self.console.print(table)

    def _show(self, result: RenderableType | None) -> None:
        if isinstance(result, str):
            self._say(f"✓ {result}", "green")
        elif result is not None:
            self.console.print(result)

    def _say(self, text: str, style: str = "") -> None:
        if self.display is not None:
            self.display.close()
        self.console.print(Text(safe(text), style=style), soft_wrap=True)

    def _say_bug(self) -> None:
        if self.display is not None:
            self.display.close()
        self._say(traceback.format_exc(limit=-4).rstrip(), "dim")
        self._say("✗ This is a fault of Heretic. The run folder keeps what was found.", "red")

    def _say_way_on(self) -> None:
        command = way_on(self.argv, self._given, self.model)
        self._say("\nTo go on from here:")
        self.console.print(Text(safe(f"  {command}")), soft_wrap=True)


def run_menu(
    front: Sequence[Trial],
    settings: object,
    actions: Actions,
    *,
    console: Console,
    model: str,
    argv: Sequence[str],
    baseline: Sequence[Score] = (),
    display: Closable | None = None,
) -> None:
    """`Menu.run`, asking if standard input and output are a terminal.

    Args:
        front: As `records.front` sorts it.
        settings: `heretic.config.Settings`.
        actions: What can be done with a trial.
        console: Where everything is shown.
        model: The model's name.
        argv: The command as given, program name included.
        baseline: Scores of the unedited model.
        display: The progress display.
    """
    menu = Menu(
        console,
        Answers.from_settings(settings),
        actions,
        model=model,
        argv=argv,
        baseline=baseline,
        prompter=TerminalPrompter() if is_interactive() else None,
        display=display,
    )
    menu.run(front)


def front_lines(front: Sequence[Trial]) -> list[str]:
    """The rows of the front as aligned lines, for a list to choose from."""
    cells = [
        (
            str(index),
            f"trial {trial.number}",
            *(scores_text([score]) for score in trial.scores),
            direction_text(trial.plan),
        )
        for index, trial in enumerate(front)
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=False)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in cells
    ]
