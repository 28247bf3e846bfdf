"""What to do with a run that is there already: continue, restart, quit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from rich.console import Console
from rich.text import Text

from heretic.cli.display.tables import front_table
from heretic.cli.display.text import is_interactive, safe
from heretic.cli.menu.answers import Answers, way_on
from heretic.cli.menu.questions import Back, Option, Prompter, TerminalPrompter
from heretic.records.trial import Score, Trial

CheckpointAction = Literal["continue", "restart", "quit"]


def choose_checkpoint(
    settings: object,
    *,
    console: Console,
    model: str,
    argv: Sequence[str],
    completed: int,
    n_trials: int,
    front: Sequence[Trial] = (),
    baseline: Sequence[Score] = (),
    unattended: CheckpointAction | None = None,
    prompter: Prompter | None = None,
) -> CheckpointAction:
    """The setting `checkpoint_action`, or else what the user says.

    Args:
        settings: `heretic.config.Settings`.
        console: Where the front and the command are printed.
        model: The model's name.
        argv: The command as given, program name included.
        completed: Completed trials of the run that was found.
        n_trials: Trials that the settings ask for.
        front: Front of that run.
        baseline: Scores of its unedited model.
        unattended: The answer if there is no setting and no terminal. None prints the front and
            the command that goes on from here, and gives `quit`.
        prompter: Asks; the terminal if there is one by default.

    Returns:
        `continue`, `restart` (the caller discards the run) or `quit` (also for Ctrl+C).
    """
    answers = Answers.from_settings(settings)
    if answers.checkpoint_action is not None:
        return cast("CheckpointAction", answers.checkpoint_action)
    asker = prompter or (TerminalPrompter() if is_interactive() else None)
    if asker is None and unattended is not None:
        return unattended
    if front:
        console.print(front_table(front, baseline, heading="front of the run that is there"))
    if asker is None:
        told = f"A run with {completed} of {n_trials} trials is there already. To go on from here:"
        console.print(Text(told), soft_wrap=True)
        console.print(Text(safe(f"  {way_on(argv, answers, model)}")), soft_wrap=True)
        return "quit"
    return _ask(asker, completed, n_trials)


def _ask(prompter: Prompter, completed: int, n_trials: int) -> CheckpointAction:
    left = n_trials - completed
    go_on = f"Continue it ({left} trials left)" if left > 0 else "Continue with what it found"
    options = [
        Option("continue", go_on),
        Option("restart", f"Start over (throws its {completed} trials away)"),
        Option("quit", "Quit"),
    ]
    question = f"A run with {completed} of {n_trials} trials is there already."
    try:
        chosen = prompter.select(question, options)
        if chosen == "restart" and not prompter.confirm(f"Throw {completed} trials away?"):
            return "quit"
    except Back:
        return "quit"
    return cast("CheckpointAction", chosen)
