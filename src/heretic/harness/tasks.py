"""Names of tasks: those offered, those known, and what is wrong with the others."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from heretic.errors import HereticError, SettingsError
from heretic.system.optional import require

OFFERED = {
    "mmlu": "MMLU: knowledge, 57 subjects",
    "mmlu_pro": "MMLU-Pro: knowledge and reasoning, ten choices",
    "agieval": "AGIEval: entrance and licensing examinations",
    "bbh": "BBH: 27 hard tasks of BIG-bench",
    "gsm8k": "GSM8K: school mathematics",
    "commonsense_qa": "CommonsenseQA: everyday knowledge",
    "hellaswag": "HellaSwag: how a scene goes on",
    "piqa": "PIQA: everyday physics",
    "winogrande": "WinoGrande: whom a pronoun means",
    "ifeval": "IFEval: following instructions to the letter",
    "eq_bench": "EQ-Bench: emotions in a dialogue",
    "truthfulqa_mc2": "TruthfulQA: common misconceptions",
    "lambada_openai": "LAMBADA: the last word of a passage",
}
"""Task -> what it measures. A menu offers these; settings take any task of the harness.

The last two show damage that the others hide: a model that has come to agree with everything, and
one whose language model has suffered while its choices among given answers have not.
"""

PURPOSE = "Running benchmarks"
EXTRA = "benchmarks"


class BenchmarkError(HereticError):
    """A benchmark cannot be run."""


def task_manager(path: Path | None = None) -> Any:
    """The harness's index of tasks, with those of a folder of the user's.

    Args:
        path: Folder of task files (YAML), which may name Python functions beside them.

    Raises:
        HereticError: lm-eval is not installed, or `path` is no folder.
    """
    if path is not None and not path.is_dir():
        raise SettingsError(
            f"benchmark_path is {path}, which is no folder.",
            remedy="Name the folder that holds the YAML files of your tasks.",
        )
    return _manager(None if path is None else path.resolve(), folder_digest(path))


@cache  # the index reads some ten thousand files
def _manager(path: Path | None, _content: str) -> Any:
    tasks = require("lm_eval.tasks", extra=EXTRA, purpose=PURPOSE)
    return tasks.TaskManager(include_path=None if path is None else str(path))


def folder_digest(path: Path | None) -> str:
    """SHA-256 of the task files in a folder and of what lies beside them; empty without one."""
    if path is None:
        return ""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            total.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            total.update(file.read_bytes())
    return total.hexdigest()


def check_tasks(names: Sequence[str], path: Path | None = None) -> None:
    """Say before any work which tasks do not exist.

    Raises:
        SettingsError: A name is unknown; the nearest known one is named.
        HereticError: As `task_manager`.
    """
    known = task_manager(path).all_tasks
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    near = [difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0] for name in unknown]
    raise SettingsError(
        f"The lm-evaluation-harness has no task {', '.join(map(repr, unknown))}.",
        remedy=f"Nearest: {', '.join(near)}. `lm-eval ls tasks` lists them all; "
        "tasks of your own are found by benchmark_path.",
    )


class _Forward(logging.Handler):
    """What the harness warns of goes into the run's log, not between the lines of the display."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass it on."""
        logging.getLogger("heretic.harness").warning("lm-eval: %s", record.getMessage())


@contextmanager
def logged() -> Iterator[None]:
    """Send the harness's warnings to Heretic's log while the context lasts."""
    logger, handler = logging.getLogger("lm_eval"), _Forward(logging.WARNING)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def remedy_for(error: BaseException) -> str:
    """What a user can do about a task that failed."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    text = " ".join(str(link) for link in chain)
    if "ImportError" in kinds:
        return "Install the package it names."
    if "GatedRepoError" in kinds or "gated" in text:
        return "Accept the data set's terms on the Hub, then log in: hf auth login."
    network = {"ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "TimeoutError"}
    if kinds & network or "Couldn't reach" in text or "Hub" in text:
        return "Its data come from the Hugging Face Hub: try again with a connection."
    if "UNSAFE" in text.upper():
        return "It runs programs that the model writes; Heretic does not."
    return "The log has the traceback."
