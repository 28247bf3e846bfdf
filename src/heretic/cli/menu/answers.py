"""Answers that settings give in advance, and the command that continues from open questions."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heretic.config.schema import option_name, settings_of
from heretic.records.choices import DEFAULT_STRATEGY
from heretic.records.options import options_of

if TYPE_CHECKING:
    from heretic.config.settings import Settings

NEEDED: Mapping[str, tuple[str, ...]] = {
    "save": ("save_directory", "export_strategy"),
    "upload": ("upload_repo_id", "upload_repo_private", "export_strategy"),
    "benchmark": ("benchmarks",),
    "chat": (),
    "none": (),
}
"""The settings that each `model_action` needs beside the trial."""

_SWITCHES = {setting.name: setting for setting in settings_of() if setting.kind == "switch"}
"""Settings that are on or off: `--x` or `--no-x`, without a value."""

_ONCE = ("n_additional_trials", "checkpoint_action")
"""Settings of the command that made the run; they must not act again when the run continues."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The settings that answer questions; None means that the user has to be asked."""

    trial_index: int | str | None = None
    max_refusals: int | None = None
    model_action: str | None = None
    save_directory: Path | None = None
    export_strategy: str | None = None
    upload_repo_id: str | None = None
    upload_repo_private: bool | None = None
    n_additional_trials: int | None = None
    benchmarks: tuple[str, ...] | None = None
    benchmark_original: bool | None = None
    checkpoint_action: str | None = None

    def open_questions(self) -> list[str]:
        """Names of unset settings that a run without a terminal needs to finish."""
        if self.model_action == "none":
            return []
        names = ["trial_index"] if self.max_refusals is None else []
        if self.model_action is None:
            names.append("model_action")
        names += NEEDED.get(self.model_action or "save", ())
        return [name for name in names if getattr(self, name) is None or name == "model_action"]


def asks_nothing(settings: Settings) -> bool:
    """Whether the settings answer every question that follows a search."""
    answers = options_of(Answers, settings)
    return answers.model_action != "chat" and not answers.open_questions()


def default_directory(model: str) -> Path:
    """The default folder for the edited model: `MODEL-heretic` in the working directory."""
    name = Path(model).name or "model"
    return Path(f"{name.removesuffix('.gguf')}-heretic")


def way_on(argv: Sequence[str], answers: Answers, model: str) -> str:
    """The command that continues from here, ready for a shell.

    It is the command that was given, with a value for every open question, and with
    `--checkpoint-action continue` in place of what it said about an existing run.

    Args:
        argv: The command as given, program name included.
        answers: What the settings answer already.
        model: The model's name, for the default folder.
    """
    added: dict[str, str] = {"checkpoint_action": "continue"}
    for name in answers.open_questions():
        added[name] = _suggestion(name, model)
    kept = without_options(argv, {*added, *_ONCE})
    for name, value in added.items():
        kept += [option_name(name)] if name in _SWITCHES else [option_name(name), value]
    return shlex.join(kept)


def without_options(argv: Sequence[str], settings: set[str]) -> list[str]:
    """`argv` without the options of these settings, in both forms (`--x=1` and `--x 1`)."""
    switches: set[str] = set()
    flags: set[str] = set()
    for name in settings:
        if name in _SWITCHES:
            switches |= {_SWITCHES[name].option, _SWITCHES[name].option_off}
        else:
            flags |= {option_name(name), f"--{name}"}
    kept: list[str] = []
    skip = False
    for argument in argv:
        if skip:
            skip = False
        elif argument in flags:
            skip = True
        elif argument.split("=", 1)[0] not in flags | switches:
            kept.append(argument)
    return kept


def _suggestion(name: str, model: str) -> str:
    base = default_directory(model)
    return {
        "trial_index": "0",
        "model_action": "save",
        "save_directory": str(base),
        "export_strategy": DEFAULT_STRATEGY,
        "upload_repo_id": f"USER/{base}",
        "upload_repo_private": "",
        "benchmarks": "mmlu",
    }[name]


def program_arguments() -> list[str]:
    """The command as given; the path of the program is replaced by its name."""
    return ["heretic", *sys.argv[1:]]
