"""What commands share: search, show the front, and offer what can be done with its trials."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.text import Text

from heretic.cli import INTERRUPTED
from heretic.cli.display.next_steps import after_saving, next_steps
from heretic.cli.display.reporter import Display
from heretic.cli.display.tables import (
    category_table,
    changes_table,
    front_table,
    scores_table,
    scores_text,
)
from heretic.cli.display.text import is_interactive, make_console, print_command
from heretic.cli.menu.answers import asks_nothing, program_arguments, without_options
from heretic.cli.menu.benchmarks import show_benchmarks
from heretic.cli.menu.chat import Strength, chat
from heretic.cli.menu.dialogue import Dialogue
from heretic.cli.menu.menu import Actions, Menu
from heretic.cli.opening import held_run, prepared, settle_existing_run
from heretic.cli.signals import outlives_terminal
from heretic.errors import HereticError, SettingsError, StudyError
from heretic.events import Notice
from heretic.records.choices import weights_strategy
from heretic.records.selection import names_by_row
from heretic.records.statistics import after_choice
from heretic.records.trial import Score, Trial

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from heretic.config.settings import Settings
    from heretic.model.core import Model
    from heretic.pipeline.export import Exported
    from heretic.pipeline.finalists import Finalists
    from heretic.pipeline.run import Session


def run_of_settings(settings: Settings, started: float, *, offers: bool = True) -> int:
    """Begin the run of these settings, or go on with it, then do what they or the user say.

    Args:
        started: When the command began, by `time.perf_counter`.
        offers: Whether a terminal asks what to do with the run if there is one, and offers what an
            interrupted search has found; if not, the command goes on or ends, as it does without a
            terminal.

    Returns:
        The exit status.

    Raises:
        HereticError: The run cannot be opened, its search fails, or what is done with a trial does.
    """
    may_begin = settings.checkpoint_action != "continue"
    with (
        outlives_terminal(asks_nothing(settings)),
        held_run(settings, make_console(), started, may_begin=may_begin) as opened,
    ):
        if not settle_existing_run(opened, asks=offers):
            return 0
        return search_and_choose(prepared(opened), opened.display, offers=offers)


def search(session: Session, display: Display) -> bool:
    """Search; returns whether the user interrupted it.

    Raises:
        StudyError: Ten trials in a row failed; the front found before them is shown.
    """
    from heretic import pipeline

    try:
        pipeline.search(session)
    except KeyboardInterrupt:
        return True
    except StudyError:
        display.close()
        if session.study.front:
            show_front(session, display.console)
        raise
    return False


def draw_front(session: Session, chosen: Trial | None = None) -> None:
    """Draw the front into the run folder; a failure is only a warning."""
    from heretic.cli.display.research import draw_run_front

    if not session.study.front:
        return
    try:
        draw_run_front(session, chosen)
    except (HereticError, OSError) as error:
        session.reporter.emit(Notice(f"The front was not drawn: {error}", level="warning"))


def search_and_choose(session: Session, display: Display, *, offers: bool = True) -> int:
    """Search, then do what the settings or the user say; returns the exit status.

    Args:
        offers: As in `run_of_settings`.
    """
    interrupted = search(session, display)
    draw_front(session)
    if not interrupted or (offers and is_interactive()):
        try:
            choose(session, display)
            return 0
        except KeyboardInterrupt:  # without a terminal: in more trials, or while saving
            if is_interactive():
                raise
    display.close()
    show_interrupted(session, display.console)
    return INTERRUPTED


def show_front(session: Session, console: Console) -> None:
    """Print the front as it is now."""
    heading = "The front so far"
    console.print(front_table(session.study.front, session.evaluator.baseline, heading=heading))


def show_interrupted(session: Session, console: Console) -> None:
    """Print the front as it is now, and the command that goes on."""
    show_front(session, console)
    arguments = program_arguments()
    if arguments[1:2] != ["batch"]:  # whose jobs go on by themselves
        kept = without_options(arguments, {"checkpoint_action"})
        arguments = [*kept, "--checkpoint-action", "continue"]
    print_command(console, "To go on with the search:", shlex.join(arguments))


def choose(session: Session, display: Display) -> None:
    """Offer the menu over a session's front."""
    dialogue = Dialogue.of_command(session.settings, display, session.evaluator.baseline)
    Menu(dialogue, actions_of(session, display)).run(session.study.front)


def actions_of(session: Session, display: Display) -> Actions:
    """What can be done with the trials of a session."""
    from heretic import pipeline

    def save(trial: Trial, directory: Path, strategy: str) -> RenderableType:
        exported = pipeline.export_trial(session, trial, directory, weights_strategy(strategy))
        made = _gguf_beside(session, directory, strategy)
        display.close()
        table = saved_table(session.evaluator.baseline, trial.scores, exported, directory)
        run = session.folder.path, session.study.front.index(trial)
        whole = strategy == "merge"
        steps = after_saving(directory, session.settings.model, run, whole=whole)
        held_out = [found for found in exported.categories if found.prompts == "held_out"]
        more = [part for found in held_out for part in ("", category_table(found))]
        return Group(table, *more, *made, "", next_steps(steps))

    def upload(trial: Trial, repo_id: str, private: bool, strategy: str) -> RenderableType:
        _check_uploaded(strategy)
        url = pipeline.upload_trial(session, trial, repo_id, private, strategy)
        display.close()
        return f"Uploaded to {url}"

    def talk(trial: Trial) -> None:
        display.close()
        system = session.settings.system_prompt
        converse(session.model, session.directions, trial, system, display.console)

    def benchmark(trial: Trial, tasks: Sequence[str], original: bool) -> RenderableType:
        return show_benchmarks(session, trial, tasks, original, display)

    def more_trials(count: int, timed: bool) -> Sequence[Trial]:
        try:
            pipeline.search(session, session.study.completed + count, timed=timed)
        except KeyboardInterrupt:
            if not is_interactive():
                raise
        except StudyError as error:  # the trials found before it can still be chosen
            session.reporter.emit(Notice(str(error), level="warning"))
        return session.study.front

    def finalists(trials: Sequence[Trial]) -> RenderableType | None:
        found = pipeline.score_finalists(session, trials)
        display.close()
        return None if found is None else finalists_table(found, trials)

    def details(trial: Trial) -> Sequence[RenderableType]:
        return [category_table(found) for found in pipeline.category_tables(session, trial)]

    return Actions(
        save=save,
        upload=upload,
        chat=talk,
        benchmark=benchmark,
        more_trials=more_trials,
        finalists=finalists,
        details=details,
    )


def _check_uploaded(strategy: str) -> None:
    if strategy == "gguf":
        raise SettingsError(
            "GGUF files are not uploaded.",
            remedy="Save them (--model-action save), or upload merged weights "
            "(--export-strategy merge).",
        )


def _gguf_beside(session: Session, directory: Path, strategy: str) -> Sequence[RenderableType]:
    """Make GGUF files of what was saved in a folder, if asked for; what is shown of them."""
    if strategy != "gguf":
        return ()
    from heretic.cli.display.gguf import shown
    from heretic.pipeline.gguf import gguf_beside

    place, results = gguf_beside(session, session.settings, directory)
    return ["", *shown(results, place)]


def finalists_table(found: Finalists, trials: Sequence[Trial]) -> RenderableType:
    """Scores of the trials that the menu proposes, on long replies."""
    names = [", ".join(names) for names in names_by_row(trials)]
    rows = {"original": found.before} | {
        f"{name} (trial {trial.number})": found.after[trial.number]
        for name, trial in zip(names, trials, strict=True)
    }
    heading = f"The same on {found.prompts} replies of up to {found.tokens} tokens"
    return scores_table(rows, label="", heading=heading)


def saved_table(
    baseline: Sequence[Score], searched: Sequence[Score], exported: Exported, directory: Path
) -> RenderableType:
    """Scores of the original, of the trial in the search, from disk, and on held-out prompts.

    Below them, what long replies show.
    """
    chose: tuple[Score, ...] = exported.saved
    held_out, note = exported.held_out, ""
    if held_out is None and exported.compared > 1:
        searched = [after_choice(score, exported.compared) for score in searched]
        chose = tuple(after_choice(score, exported.compared) for score in chose)
        note = f"intervals are corrected for the choice among {exported.compared} trials"
    rows = {"original": baseline, "in the search": searched, "from disk": chose}
    if held_out is not None:
        rows |= {
            "original, held-out prompts": held_out.before,
            "edited, held-out prompts": held_out.after,
        }
        note = "held-out prompts are fresh: neither directions nor search have seen them"
    table = scores_table(rows, label="", heading=f"Saved in {directory}", note=note)
    long = exported.long_replies
    if long is None:
        return table
    heading = f"With replies of up to {long.tokens} tokens"
    shown: list[RenderableType] = [changes_table(long.before, long.after, heading=heading)]
    if long.saved:
        told = scores_text(long.saved)
        shown.append(Text(f"From disk, on the first of these prompts: {told}", style="dim"))
    return Group(table, "", *shown)


def converse_steered(
    model: Model, vectors: NDArray[np.float32], system: str | None, console: Console
) -> None:
    """Chat with a model whose layers get vectors, float32 [layers + 1, hidden], added.

    `/strength` sets how often, 0 at first.
    """
    import torch

    scaled = "the directions (0: original, below 0: less of the behaviour)"
    strength = Strength(0.0, "the run's directions", scaled)
    added = torch.from_numpy(vectors)

    def steered(messages: list[dict[str, str]]) -> Iterator[str]:
        with model.steered(added, strength.value):
            yield from model.stream_reply(messages)

    chat(
        steered,
        console=console,
        original=model.stream_reply,
        system=system,
        strength=strength,
        name="steered",
    )


def converse(
    model: Model, directions: Tensor, trial: Trial, system: str | None, console: Console
) -> None:
    """Chat with a trial's edited model.

    `/compare` shows the original beside it, and `/strength` scales the edit.
    """
    strength = Strength()

    def edited(messages: list[dict[str, str]]) -> Iterator[str]:
        with model.edited(trial.plan, directions, strength.value):
            yield from model.stream_reply(messages)

    chat(edited, console=console, original=model.stream_reply, system=system, strength=strength)
