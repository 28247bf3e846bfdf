"""A tiny program with the real display, menu and chat, and no model: driven by the tests.

Usage: terminal_program.py MODE [ANSWERS as JSON]. MODE is one of menu, search, endless, crash,
panel, chat, checkpoint.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from heretic.cli import INTERRUPTED
from heretic.cli.display.reporter import make_reporter
from heretic.cli.display.text import make_console
from heretic.cli.menu.answers import Answers
from heretic.cli.menu.chat import chat
from heretic.cli.menu.checkpoint import choose_checkpoint
from heretic.cli.menu.dialogue import Dialogue
from heretic.cli.menu.menu import Actions, Menu
from heretic.cli.menu.questions import terminal_prompter
from heretic.cli.signals import exit_status, farewell, handled_signals, outlives_terminal
from heretic.cli.streams import lasting_streams
from heretic.errors import ExportError
from heretic.events import (
    EvaluationProgress,
    Notice,
    Reporter,
    SearchFinished,
    SearchStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    TrialFinished,
    TrialStarted,
)
from heretic.records import Kernel, Plan, Score, Trial, front

HOSTILE = "[/INST] [bold red]loud[/] \x1b]0;renamed\x07 \x1b[2Jend"
MODEL = "org/tiny-1b"
ARGV = ["heretic", MODEL, "--n-trials", "4", "--n-additional-trials=3"]


def scores(refusals: int, kl: float) -> tuple[Score, ...]:
    """The two default scores."""
    return (
        Score("refusals", refusals / 100, "minimize", f"{refusals}/100"),
        Score("kl_divergence", kl, "minimize", f"{kl:.4f}"),
    )


BASELINE = scores(97, 0.0)


def trial(number: int) -> Trial:
    """Trials of which every one is on the front, the later the fewer refusals."""
    plan = Plan.create(
        direction_scope="global" if number % 2 else "per layer",
        direction_index=12.5 + number,
        kernels={"attn": Kernel(1.1, 17.2, 0.5, 9.0), "mlp": Kernel(0.0, 18.0, 0.0, 4.0)},
        row_normalization="full",
    )
    return Trial(number, plan, scores(90 - 10 * number, 0.01 * number + 0.003), seconds=2.0)


def run_search(reporter: Reporter, n_trials: int, *, failed: int | None = None) -> list[Trial]:
    """Emit what a search emits."""
    trials: list[Trial] = []
    reporter.emit(SearchStarted(0, n_trials, BASELINE))
    for number in range(n_trials):
        reporter.emit(TrialStarted(number, number, n_trials))
        for done in range(0, 101, 50):
            reporter.emit(EvaluationProgress("replies", done, 100, 812.0))
            time.sleep(0.05)
        done_trial = trial(number)
        if number == failed:
            done_trial = replace(done_trial, scores=(), state="failed", failure=HOSTILE)
        trials.append(done_trial)
        reporter.emit(
            TrialFinished(done_trial, front(trials), number + 1, n_trials, 61.0 * number, 60.0)
        )
    reporter.emit(SearchFinished("done", n_trials, 61.0 * n_trials))
    return front(trials)


def run_stages(reporter: Reporter) -> None:
    """Emit what comes before a search."""
    reporter.emit(Notice(HOSTILE, "warning"))
    reporter.emit(StageStarted("Loading model"))
    reporter.emit(StageFinished("30 layers"))
    reporter.emit(StageStarted("Residuals", total=400))
    reporter.emit(StageProgress(200, 400))
    reporter.emit(StageFinished("400 prompts"))


def replies(name: str) -> Any:
    """A model that repeats what it was told, and talks for long if asked to."""

    def reply(messages: list[dict[str, str]]) -> Iterator[str]:
        said = messages[-1]["content"]
        if said == "fail":
            raise ExportError("The model is gone.", remedy="Load it again.")
        yield f"{name} {len(messages)} {messages[0]['role']} "
        yield from (HOSTILE, " ", said)
        for _ in range(1000 if said == "long" else 0):
            time.sleep(0.02)
            yield " and on"

    return reply


def save(chosen: Trial, directory: Path, strategy: str) -> str:
    """Pretend to save."""
    if directory.name == "full":
        raise ExportError("The disk is full.", remedy="Free some space.")
    if directory.name == "broken":
        raise ValueError(HOSTILE)
    directory.mkdir(exist_ok=True)
    if directory.name == "slow":  # time to close the terminal
        (directory / "begun").touch()
        time.sleep(1)
    (directory / "abliteration_params.json").write_text("{}")
    return f"Saved trial {chosen.number} in {directory.name} as {strategy}."


def main(mode: str, answers: Answers) -> None:
    """Run one mode."""
    console = make_console()
    with make_reporter(console) as reporter:
        while mode == "endless":
            run_stages(reporter)
        if mode in {"search", "crash", "panel"}:
            run_stages(reporter)
            run_search(reporter, 4, failed=2)
            if mode != "search":
                reporter.emit(SearchStarted(4, 8, BASELINE))
                time.sleep(600 if mode == "panel" else 0.5)
                raise RuntimeError("crashed on purpose")
            return
        if mode == "chat":
            chat(replies("edited"), console=console, original=replies("original"), system="Be.")
            print("chat left")
            return
        if mode == "checkpoint":
            found = [trial(number) for number in range(2)]
            argv = [*ARGV, "--checkpoint-action", "restart"]
            prompter = terminal_prompter()
            dialogue = Dialogue(answers, MODEL, argv, reporter, BASELINE, prompter)
            chosen = choose_checkpoint(dialogue, 2, 4, front(found))
            print(f"chosen: {chosen}")
            return

        def talk(_: Trial) -> None:
            chat(replies("edited"), console=console)

        def upload(chosen: Trial, repo_id: str, private: bool, strategy: str) -> str:
            return f"Uploaded {chosen.number} to {repo_id}, private={private}, {strategy}."

        def benchmark(chosen: Trial, tasks: Sequence[str], both: bool) -> str:
            return f"Benchmarks of {chosen.number}: {','.join(tasks)}, both={both}."

        def more(count: int, timed: bool) -> Sequence[Trial]:
            return run_search(reporter, 4 + count)

        actions = Actions(
            save=save, upload=upload, chat=talk, benchmark=benchmark, more_trials=more
        )
        dialogue = Dialogue(answers, MODEL, ARGV, reporter, BASELINE, terminal_prompter())
        Menu(dialogue, actions).run(front([trial(number) for number in range(4)]))
        print("menu left")


def program() -> int:
    """Run what the command line says, with streams and signals as in `heretic.main`."""
    given = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    if "save_directory" in given:
        given["save_directory"] = Path(given["save_directory"])
    answers = Answers(**given)
    with lasting_streams(), handled_signals(program.__code__):
        try:
            with outlives_terminal(not answers.open_questions()):
                main(sys.argv[1], answers)
        except KeyboardInterrupt:
            print(farewell(), file=sys.stderr)
            return exit_status(INTERRUPTED)
        return exit_status(0)


if __name__ == "__main__":
    sys.exit(program())
