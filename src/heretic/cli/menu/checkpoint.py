"""What to do with a run that already exists: continue, restart, quit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from heretic.cli.display.tables import front_table
from heretic.cli.menu.dialogue import Dialogue
from heretic.cli.menu.questions import Back, Option, Prompter, Unanswered
from heretic.events import Notice
from heretic.records.trial import Trial
from heretic.system.display import count_of, counted

CheckpointAction = Literal["continue", "restart", "quit"]


def choose_checkpoint(
    dialogue: Dialogue,
    completed: int,
    n_trials: int,
    front: Sequence[Trial],
    ended: str | None = None,
) -> CheckpointAction:
    """The setting `checkpoint_action`, or else what the user says.

    Without the setting and without a terminal the run is continued.

    Args:
        dialogue: What the settings answer, and where to ask.
        completed: Completed trials of the run that was found.
        n_trials: Trials that the settings ask for.
        front: Front of that run.
        ended: Why its search cannot go on; None if it can.

    Returns:
        `continue`, `restart` (the caller discards the run) or `quit` (also for Ctrl+C).
    """
    if dialogue.answers.checkpoint_action is not None:
        return cast("CheckpointAction", dialogue.answers.checkpoint_action)
    state = f"A run with {count_of(completed, n_trials)} trials already exists."
    if dialogue.prompter is None and ended is not None:
        return "continue"  # which the caller refuses, with the remedy
    if dialogue.prompter is None:
        remedy = "--checkpoint-action restart starts it over."
        dialogue.display.emit(Notice(f"{state} It is continued; {remedy}"))
        return "continue"
    if front:
        heading = "front of the existing run"
        dialogue.display.console.print(front_table(front, dialogue.baseline, heading=heading))
    if ended is not None:
        return _ask(dialogue.ask(), f"{state} {ended}", completed, None)
    return _ask(dialogue.ask(), state, completed, n_trials)


def _ask(prompter: Prompter, state: str, completed: int, n_trials: int | None) -> CheckpointAction:
    """Ask.

    Args:
        n_trials: None if the search cannot go on.
    """
    options = [
        *([] if n_trials is None else [Option("continue", _go_on(n_trials - completed))]),
        Option("restart", f"Start over (deletes its {counted(completed, 'trial')})"),
        Option("quit", "Quit"),
    ]
    try:
        chosen = prompter.select(state, options)
        if chosen == "restart" and not prompter.confirm(f"Delete {counted(completed, 'trial')}?"):
            return "quit"
    except (Back, Unanswered):
        return "quit"
    return cast("CheckpointAction", chosen)


def _go_on(left: int) -> str:
    if left <= 0:
        return "Continue with what it found"
    return f"Continue it ({counted(left, 'trial')} left)"
