"""Run one task of the lm-evaluation-harness on a model in memory.

This module needs lm-eval and is imported late. Within `Model.edited` the edited model answers,
through edits of outputs: no weight changes and nothing is written to disk.
"""

from __future__ import annotations

import io
import math
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from heretic.events import Reporter, StageProgress
from heretic.harness.results import Measurement, Metric, Stratum, standard_error
from heretic.harness.tasks import logged, task_manager
from heretic.model.core import Model
from heretic.system.memory import halved

SEEDS = {"python": 0, "other": 1234}
"""The harness's default seeds, so that results equal those of its command line."""

RESAMPLES = 1000
"""Bootstrap samples for standard errors of figures that are not means (perplexity, F1)."""


class _Progress:
    """Counts answered requests; the harness calls it for each of them."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._done = self._total = 0

    def expect(self, requests: int) -> None:
        """Increase the expected number of requests."""
        self._total += requests

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Count one answered request; the name is that of the harness's `CacheHook`."""
        del attr, req, res
        self._done += 1
        if self._done == self._total or self._done % max(1, self._total // 100) == 0:
            self._reporter.emit(StageProgress(self._done, self._total, "requests"))


class LoadedLM(HFLM):  # type: ignore[misc]
    """Adapts a `Model` to the harness, with Heretic's chat template, system role and batch size.

    If replies begin with a reasoning block, an empty closed one is put before the answer, as in the
    search. So given choices are scored, and generated answers begin, after the reasoning.
    """

    def __init__(self, model: Model, progress: _Progress) -> None:
        super().__init__(
            pretrained=model.model,
            tokenizer=model.tokenizer,
            backend="causal",
            batch_size=model.batch_size,
        )
        self._device = model.device  # device of input ids, if the layers are on several devices
        self._renderer = model.renderer
        self._block = reasoning_block(model)
        self._progress = progress
        self.set_cache_hook(progress)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's text, which the harness records; empty without one."""
        return (self._renderer.template or "") if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of the chat; without a generation prompt it ends with the start of the reply."""
        messages = [dict(message) for message in chat_history]
        beginning = ""
        if not add_generation_prompt and messages[-1]["role"] == "assistant":
            beginning = messages.pop()["content"]
        if messages[0]["role"] == "system" and not self._renderer.shows_system:
            system = messages.pop(0)["content"]  # it holds the task's instructions
            messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
        return self._renderer.text(messages) + self._block + beginning

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Log-likelihood of each given continuation, by the harness, with Heretic's progress."""
        del disable_tqdm
        self._progress.expect(len(requests))
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Log-likelihood of each whole text, by the harness, with Heretic's progress."""
        del disable_tqdm
        self._progress.expect(len(requests))
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Generated answers, by the harness, with Heretic's progress."""
        del disable_tqdm
        self._progress.expect(len(requests))
        return super().generate_until(requests, disable_tqdm=True)


def reasoning_block(model: Model) -> str:
    """The closed reasoning block in the model's response prefix; empty without one.

    The rest of the prefix, which replies to the search's prompts share, is left out, because it
    does not fit answers to a benchmark.
    """
    prefix = model.response_prefix.lstrip()
    for opening, closed in model.options.chain_of_thought_skips:
        # Where the template opens the block, the prefix holds only the end of the block.
        for form in (closed, closed.removeprefix(opening)):
            if form and prefix.startswith(form):
                return form
    return ""


def measure(
    model: Model,
    task: str,
    *,
    key: str,
    limit: int | None = None,
    path: Path | None = None,
    reporter: Reporter,
) -> Measurement:
    """Run a task, or all tasks of a group or tag.

    Args:
        model: The model; within `Model.edited`, the edited one.
        task: Name of a task, group or tag.
        key: Key that is stored with the result.
        limit: Number of first documents of each task; None for all.
        path: Folder with the user's own tasks.
        reporter: Receives progress.

    Raises:
        Exception: Any error of the harness, the task or its data set.
    """
    began = time.monotonic()
    while True:
        try:
            with logged(), _quiet(), _seeded():
                loaded, results = _evaluate(model, task, limit, path, reporter)
            break
        except RuntimeError as error:
            model.notify_halved(halved(model.batch_size, error))
    return Measurement(
        task=task,
        key=key,
        metrics=tuple(_metrics(task, loaded, results)),
        batch_size=model.batch_size,
        seconds=round(time.monotonic() - began, 1),
        versions=dict(results["versions"]),
        limit=limit,
    )


def _evaluate(
    model: Model, task: str, limit: int | None, path: Path | None, reporter: Reporter
) -> tuple[Any, Any]:
    """The loaded tasks and the harness's results."""
    loaded = task_manager(path).load([task])
    for single in loaded["tasks"].values():
        if single.get_config("num_fewshot") is None:
            single.set_config(key="num_fewshot", value=0)
        single.set_fewshot_seed(seed=SEEDS["other"])
    chat = model.renderer.has_template
    # Without a system role the system prompt would become part of every question.
    system = model.options.system_prompt if chat and model.renderer.shows_system else None
    results = evaluate(
        lm=LoadedLM(model, _Progress(reporter)),
        task_dict=loaded,
        limit=limit,
        bootstrap_iters=RESAMPLES,
        log_samples=True,
        system_instruction=system or None,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    return loaded, results


@contextmanager
def _quiet() -> Iterator[None]:
    """Discard standard error, where the harness's progress bars would disturb the display."""
    with redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _seeded() -> Iterator[None]:
    """Set the harness's seeds while the context lasts; afterwards restore the generators."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(SEEDS["python"])
    np.random.seed(SEEDS["other"])
    try:
        with torch.random.fork_rng():
            torch.manual_seed(SEEDS["other"])
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


# --- results -------------------------------------------------------------------------------


def _metrics(name: str, loaded: Any, results: Any) -> Iterator[Metric]:
    """The group's own figures if it has any, else the figures of its tasks."""
    leaves = sorted(loaded["tasks"])
    group = _figures(results.get("groups", {}).get(name, {}))
    for column, value in group.items():
        strata = _group_strata(value, [_values(results, leaf, column) for leaf in leaves])
        documents = sum(_documents(results, leaf) for leaf in leaves)
        yield _metric(results, "groups", name, column, value, documents, strata)
    for leaf in () if group else leaves:
        for column, value in _figures(results["results"][leaf]).items():
            values = _values(results, leaf, column)
            strata = _checked(value, (Stratum(1.0, values),)) if values else ()
            number = len(values) or _documents(results, leaf)
            yield _metric(results, "results", leaf, column, value, number, strata)


def _metric(
    results: Any,
    part: str,
    task: str,
    column: str,
    value: float,
    n: int,
    strata: tuple[Stratum, ...],
) -> Metric:
    metric, _, answer_filter = column.rpartition(",")
    given = results[part][task].get(f"{metric}_stderr,{answer_filter}")
    stderr = standard_error(strata) if strata else None
    if stderr is None and isinstance(given, int | float) and math.isfinite(given):
        stderr = float(given)
    return Metric(
        task=task,
        metric=metric if answer_filter == "none" else f"{metric} ({answer_filter})",
        value=value if math.isfinite(value) else None,
        stderr=stderr,
        n=n,
        higher_is_better=results["higher_is_better"].get(task, {}).get(metric),
        strata=strata,
    )


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """`metric,filter` to figure, without standard errors and values that are not numbers."""
    return {
        name: float(value)
        for name, value in row.items()
        if "," in name and "_stderr," not in name and _is_number(value)
    }


def _values(results: Any, task: str, column: str) -> tuple[float, ...]:
    """The metric's value for each document; empty if they are not all numbers."""
    metric, _, answer_filter = column.rpartition(",")
    found = [
        row[metric]
        for row in results["samples"][task]
        if row["filter"] == answer_filter and metric in row
    ]
    return tuple(map(float, found)) if all(map(_is_number, found)) else ()


def _documents(results: Any, task: str) -> int:
    return int(results["n-samples"][task]["effective"])


def _group_strata(value: float, values: Sequence[tuple[float, ...]]) -> tuple[Stratum, ...]:
    """A group's documents with their weights: equal per document, or equal per task.

    Empty if neither gives the group's figure.
    """
    if not values or not all(values):
        return ()
    alike = (Stratum(1.0, tuple(number for part in values for number in part)),)
    return _checked(value, alike) or _checked(
        value, tuple(Stratum(1 / len(values), part) for part in values)
    )


def _checked(value: float, strata: tuple[Stratum, ...]) -> tuple[Stratum, ...]:
    """The strata if their weighted mean is the figure, else empty."""
    mean = math.fsum(stratum.weight * statistics.fmean(stratum.values) for stratum in strata)
    return strata if math.isclose(mean, value, rel_tol=1e-6, abs_tol=1e-9) else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number | np.bool_) and math.isfinite(value)
