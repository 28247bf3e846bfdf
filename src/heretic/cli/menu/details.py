"""What an action needs to know: trial, destination, export strategy, repository, benchmarks.

Methods take the answer from its setting, and ask only if that is unset.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from heretic.cli.menu.answers import default_directory
from heretic.cli.menu.dialogue import Dialogue
from heretic.cli.menu.questions import Option
from heretic.errors import ExportError, SettingsError
from heretic.export.files import is_ours
from heretic.export.serving import is_dora
from heretic.export.staging import contents
from heretic.harness.tasks import OFFERED
from heretic.records.plan import Plan
from heretic.system.files import expanded

BENCHMARKS = tuple(Option(task, label) for task, label in OFFERED.items())
"""What the menu offers; the setting `benchmarks` takes any task of the harness."""

MOST_TRIALS = 1_000_000

_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


class Details:
    """Asks for the details of actions.

    Args:
        dialogue: What the settings answer, and where the rest is asked. Where to save or upload is
            taken from the settings once: the next action asks.
    """

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.answers = dialogue.answers

    @property
    def interactive(self) -> bool:
        """Whether the user can be asked."""
        return self.dialogue.prompter is not None

    def destination(self) -> Path:
        """A folder that is free, or that the user agrees to replace.

        Raises:
            ExportError: The folder holds files that are not of an export, and there is no terminal.
        """
        given = self.answers.save_directory
        self.answers = replace(self.answers, save_directory=None)  # the next save asks
        while True:
            path = given or self._ask_directory()
            problem = destination_problem(path)
            if problem is None:
                return path
            if is_ours(path):
                if not self.interactive:
                    return path  # as every command does with an earlier export
                question = f"{path} holds a model that Heretic saved. Replace it?"
                if self.dialogue.ask().confirm(question):
                    return path
            elif not self.interactive:
                raise ExportError(problem, remedy="Give another folder as --save-directory.")
            else:
                self.dialogue.say(problem, "yellow")
            given = None

    def _ask_directory(self) -> Path:
        default = default_directory(self.dialogue.model)
        number = 1
        while destination_problem(default) is not None:
            number += 1
            default = Path(f"{default_directory(self.dialogue.model)}-{number}")
        return expanded(self.dialogue.ask().path("Folder to save in:", str(default)))

    def strategy(self, plan: Plan) -> str:
        """`merge`, `adapter` or `gguf`.

        Args:
            plan: What is saved, which decides what kind of adapter it can be.
        """
        if self.answers.export_strategy is not None:
            return self.answers.export_strategy
        options = [
            Option("merge", "The whole edited model"),
            Option("adapter", _adapter_label(plan)),
            Option("gguf", "The whole edited model, and GGUF files of it for llama.cpp"),
        ]
        return str(self.dialogue.ask().select("What to save?", options))

    def repository(self) -> tuple[str, bool]:
        """Name of the Hub repository, and whether it is private.

        Raises:
            SettingsError: The setting is not the name of a repository.
        """
        repo_id, private = self.answers.upload_repo_id, self.answers.upload_repo_private
        if repo_id is None:
            question = "Repository (USER/NAME):"
            default = str(default_directory(self.dialogue.model))
            repo_id = self.dialogue.ask().text(question, default, repository_problem)
        elif (problem := repository_problem(repo_id)) is not None:
            raise SettingsError(
                f"upload_repo_id is {repo_id!r}, which cannot be the name of a repository.",
                remedy=problem,
            )
        if private is None:
            options = [
                Option(True, "Private: only you can see it"),
                Option(False, "Public: everyone can see and download it"),
            ]
            private = bool(self.dialogue.ask().select("Who may see it?", options))
        if self.interactive:
            self.answers = replace(self.answers, upload_repo_id=None, upload_repo_private=None)
        return repo_id, private

    def benchmarks(self) -> tuple[tuple[str, ...], bool]:
        """Tasks to run, and whether on the original model too (the default without a terminal)."""
        tasks = self.answers.benchmarks or tuple(
            self.dialogue.ask().checkbox("Which benchmarks?", BENCHMARKS)
        )
        original = self.answers.benchmark_original
        if original is not None or not self.interactive:
            return tasks, original is not False
        options = [
            Option(False, "The edited model only"),
            Option(True, "The edited and the original model (twice the time)"),
        ]
        return tasks, bool(self.dialogue.ask().select("On which model?", options))


def _adapter_label(plan: Plan) -> str:
    """What kind of adapter a plan makes, and which programs take it."""
    if is_dora(plan):
        return "A small adapter for the original model (DoRA: for PEFT, not for vLLM)"
    return f"A small adapter for the original model (LoRA of rank {plan.rank}: for PEFT and vLLM)"


def destination_problem(path: Path) -> str | None:
    """Why nothing can be saved at `path` as it is; None if it is free."""
    if path.is_dir():
        return f"{path} exists and is not empty." if contents(path) else None
    return f"{path} exists and is not a folder." if path.exists() else None


def repository_problem(repo_id: str) -> str | None:
    """What is wrong with the name of a Hub repository; None if it is valid."""
    if _REPOSITORY.fullmatch(repo_id) and "--" not in repo_id and ".." not in repo_id:
        return None
    return "A repository is named USER/NAME, with letters, digits, '-', '_' and '.' only."


def number_problem(typed: str) -> str | None:
    """What is wrong with a number of trials; None if it is valid, or left out."""
    valid = not typed or (typed.isascii() and typed.isdigit() and 0 < int(typed) <= MOST_TRIALS)
    return None if valid else f"A whole number above 0 is needed, {MOST_TRIALS:,} at most."
