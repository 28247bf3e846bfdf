"""Names of tasks: those that the menu offers, the check of names, remedies for failures."""

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
    "hellaswag": "HellaSwag: how a scene continues",
    "piqa": "PIQA: everyday physics",
    "winogrande": "WinoGrande: what a pronoun refers to",
    "ifeval": "IFEval: following instructions exactly",
    "eq_bench": "EQ-Bench: emotions in a dialogue",
    "truthfulqa_mc2": "TruthfulQA: common misconceptions",
    "lambada_openai": "LAMBADA: the last word of a passage",
}
"""Task to what it measures. The menu offers these; settings take any task of the harness.

The last two show damage that the others hide: a model that agrees with everything now, and a model
that predicts text worse although it still chooses well among given answers.
"""

PURPOSE = "Running benchmarks"
EXTRA = "benchmarks"


class BenchmarkError(HereticError):
    """A benchmark cannot be run."""


def task_manager(path: Path | None = None) -> Any:
    """The harness's index of tasks, including the user's own.

    Args:
        path: Folder of the user's task files (YAML), which may refer to Python files beside them.

    Raises:
        HereticError: lm-eval is not installed, or `path` is not a folder.
    """
    if path is not None and not path.is_dir():
        raise SettingsError(
            f"benchmark_path is {path}, which is not a folder.",
            remedy="Set it to the folder with the YAML files of your tasks.",
        )
    return _manager(None if path is None else path.resolve(), folder_digest(path))


@cache  # the index reads some ten thousand files
def _manager(path: Path | None, _content: str) -> Any:
    tasks = require("lm_eval.tasks", extra=EXTRA, purpose=PURPOSE)
    return tasks.TaskManager(include_path=None if path is None else str(path))


def folder_digest(path: Path | None) -> str:
    """SHA-256 of all files in a folder of tasks; empty for None."""
    if path is None:
        return ""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            total.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            total.update(file.read_bytes())
    return total.hexdigest()


def check_tasks(names: Sequence[str], path: Path | None = None) -> None:
    """Check before any work that all tasks exist.

    Raises:
        SettingsError: A name is unknown; the error gives the nearest known one.
        HereticError: lm-eval is not installed, or `path` is not a folder.
    """
    known = task_manager(path).all_tasks
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    near = [difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0] for name in unknown]
    raise SettingsError(
        f"The lm-evaluation-harness has no task {', '.join(map(repr, unknown))}.",
        remedy=f"Nearest: {', '.join(near)}. `lm-eval ls tasks` lists them all; "
        "set benchmark_path for tasks of your own.",
    )


class _Forward(logging.Handler):
    """Writes the harness's warnings to the run's log instead of the display."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one warning as Heretic's own."""
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
    """The remedy for a task that failed with this error."""
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
        return "Its data come from the Hugging Face Hub; try again with a network connection."
    if "UNSAFE" in text.upper():
        return "It runs code that the model writes, which Heretic does not allow."
    return "See the traceback in the log."
