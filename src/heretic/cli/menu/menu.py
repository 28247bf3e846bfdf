"""What happens after the search: choose a trial, then save, upload, chat, benchmark, search on.

Settings answer questions in advance. Other questions are asked on the terminal; without one, the
front and the command that goes on from here are printed. The menu knows nothing about models: what
it can do is handed in as `Actions`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import RenderableType

from heretic.cli.display.tables import (
    bound_text,
    direction_text,
    front_table,
    name_cells,
    plan_table,
    scores_table,
    scores_text,
)
from heretic.cli.menu.details import Details, number_problem
from heretic.cli.menu.dialogue import Dialogue
from heretic.cli.menu.questions import Back, Option, Unanswered
from heretic.cli.signals import outlives_terminal
from heretic.errors import HereticError, SettingsError
from heretic.records.selection import named_rows, row_within, trial_in_row
from heretic.records.trial import Trial

logger = logging.getLogger(__name__)

_MORE, _EXIT = "more", "exit"
_USUAL = 50


@dataclass(frozen=True, slots=True)
class Actions:
    """What can be done with a trial. Each raises `HereticError` where the user can fix the problem.

    What `save`, `upload` and `benchmark` return is printed: a line (never read as markup), or a
    table. `more_trials(n, timed)` continues the search, within its time limit if `timed`, and
    returns the new front, even if it was interrupted. `finalists` scores the trials that have names
    more thoroughly, before the user is asked for one. `details` are shown of a trial that was
    chosen, below its scores.
    An action that is None is not offered.
    """

    save: Callable[[Trial, Path, str], RenderableType]
    upload: Callable[[Trial, str, bool, str], RenderableType] | None = None
    chat: Callable[[Trial], None] | None = None
    benchmark: Callable[[Trial, Sequence[str], bool], RenderableType] | None = None
    more_trials: Callable[[int, bool], Sequence[Trial]] | None = None
    finalists: Callable[[Sequence[Trial]], RenderableType | None] | None = None
    details: Callable[[Trial], Sequence[RenderableType]] | None = None


class Menu:
    """The menu after a search.

    Args:
        dialogue: What the settings answer, and where the rest is asked.
        actions: What can be done with a trial.
    """

    def __init__(self, dialogue: Dialogue, actions: Actions) -> None:
        self.dialogue = dialogue
        self.actions = actions
        self.answers = dialogue.answers  # each is taken out once it has been used
        self.front: list[Trial] = []
        self._details = Details(dialogue)
        self._finalists: list[Trial] = []  # those that were scored last

    def run(self, front: Sequence[Trial]) -> None:
        """Show the front and do what the settings or the user say, until one of them ends it.

        Raises:
            SettingsError: `trial_index` is not a row of the front, or `max_refusals` fits no score.
            HereticError: An action failed, and there is no terminal to ask what next.
            KeyboardInterrupt: An action was interrupted, and there is no terminal to ask what next.
        """
        self.front = list(front)
        try:
            self._extend_as_set()
            self._show_front()
            if self.answers.model_action != "none":
                self._loop()
        except Unanswered:
            self.dialogue.say_way_on("\nTo go on from here:")
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
            trial = trial_in_row(self.front, index)
            self.answers = replace(self.answers, trial_index=None)  # "another trial" asks
            return trial
        wanted = self._wanted()
        if wanted is not None and self.dialogue.prompter is None:
            return self.front[wanted]
        self.dialogue.ask()  # raises if nobody can be asked: then the next step is not worth it
        self._show_finalists()
        prompter = self.dialogue.ask()
        options = [
            Option(number, line) for number, line in enumerate(front_lines(self.front))
        ] + self._ways_out()
        question = "Which trial?" if self.front else "No trial has completed yet."
        chosen = prompter.select(question, options, wanted)
        return self.front[chosen] if isinstance(chosen, int) else str(chosen)

    def _show_finalists(self) -> None:
        """Score the rows that have names on long replies, once; Ctrl+C leaves it out."""
        rows = dict.fromkeys(named_rows(self.front).values())
        trials = [self.front[row] for row in rows]
        if self.actions.finalists is None or not trials or trials == self._finalists:
            return
        self._finalists = trials
        self._perform(partial(self.actions.finalists, trials))

    def _wanted(self) -> int | None:
        """The row that `max_refusals` chooses; None if it is unset, or no trial has completed."""
        most = self.answers.max_refusals
        return None if most is None or not self.front else row_within(self.front, most).row

    def _ways_out(self) -> list[Option]:
        more = [Option(_MORE, "Run more trials")] if self.actions.more_trials else []
        return [*more, Option(_EXIT, "Exit")]

    # What to do with it.

    def _trial_menu(self, trial: Trial) -> bool:
        """Offer actions; returns True to end the program, False to choose another trial."""
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
        return str(self.dialogue.ask().select(question, options + self._ways_out()))

    def _act(self, action: str, trial: Trial) -> RenderableType | None:
        actions, details = self.actions, self._details
        if action == "save":
            place = details.destination(), details.strategy(trial.plan)
            with outlives_terminal():
                return actions.save(trial, *place)
        if action == "upload" and actions.upload is not None:
            target = *details.repository(), details.strategy(trial.plan)
            with outlives_terminal():
                return actions.upload(trial, *target)
        if action == "benchmark" and actions.benchmark is not None:
            return actions.benchmark(trial, *details.benchmarks())
        if action == "chat" and actions.chat is not None:
            actions.chat(trial)
            return None
        raise SettingsError(f"The action {action!r} is not available here.")

    def _perform(self, action: Callable[[], RenderableType | None]) -> bool:
        """Do it and show the result, or on a terminal the error; returns whether it succeeded."""
        try:
            self._show_result(action())
        except Back:
            return False
        except HereticError as error:
            if self.dialogue.prompter is None:
                raise
            self.dialogue.say(f"✗ {error}", "red")
        except KeyboardInterrupt:
            if self.dialogue.prompter is None:
                raise
            self.dialogue.say("Stopped.", "yellow")
        except Unanswered:
            raise
        except Exception:
            if self.dialogue.prompter is None:
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
            self._perform(partial(self._extend, number, timed=True))

    def _more(self) -> bool:
        """Ask how many trials, run them, show the new front; returns whether it succeeded."""

        def run() -> None:
            question = f"How many more trials? (Enter: {_USUAL})"
            number = self.dialogue.ask().text(question, check=number_problem)
            self._extend(int(number or _USUAL), timed=False)  # who asks now has the time
            self._show_front()

        return self._perform(run)

    def _extend(self, number: int, *, timed: bool) -> None:
        if self.actions.more_trials is None:
            raise SettingsError("This run cannot be searched any further.")
        self.front = list(self.actions.more_trials(number, timed))

    # Showing.

    def _show_front(self) -> None:
        if self.front:
            heading = "The front: the best trade-offs found"
            self.dialogue.show(front_table(self.front, self.dialogue.baseline, heading=heading))
            if self.answers.max_refusals is not None:
                self.dialogue.say(*bound_text(self.front, self.answers.max_refusals))
        else:
            self.dialogue.say("No trial has completed yet.", "yellow")

    def _show_trial(self, trial: Trial) -> None:
        if self.dialogue.baseline:
            rows = {"original": self.dialogue.baseline, f"trial {trial.number}": trial.scores}
            self.dialogue.show(scores_table(rows, label=""))
        self.dialogue.show(plan_table(trial.plan))
        if self.actions.details is not None:
            self._perform(partial(self._show_details, self.actions.details, trial))

    def _show_details(
        self, details: Callable[[Trial], Sequence[RenderableType]], trial: Trial
    ) -> None:
        for table in details(trial):
            self.dialogue.show(table)

    def _show_result(self, result: RenderableType | None) -> None:
        if isinstance(result, str):
            self.dialogue.say(f"✓ {result}", "green")
        elif result is not None:
            self.dialogue.display.console.print(result, crop=False)  # commands stay whole

    def _say_bug(self) -> None:
        self.dialogue.say(traceback.format_exc(limit=-4).rstrip(), "dim")
        self.dialogue.say("✗ This is a bug in Heretic. The run folder keeps what was found.", "red")


def front_lines(front: Sequence[Trial]) -> list[str]:
    """The rows of the front, with their names, as aligned lines of text to choose from."""
    cells = [
        (
            f"{index}  {name}" if name else str(index),
            f"trial {trial.number}",
            *(scores_text([score]) for score in trial.scores),
            direction_text(trial.plan),
        )
        for index, (trial, name) in enumerate(zip(front, name_cells(front), strict=True))
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=False)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in cells
    ]
