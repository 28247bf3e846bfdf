"""The fit of a run: it is saved after every round, and goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from torch import Tensor

from heretic.errors import StudyError
from heretic.events import Notice, Reporter, StageFinished, StageProgress, StageStarted
from heretic.method.fits import Fit
from heretic.model.core import Model
from heretic.prompts import PromptSets
from heretic.records.plan import FITS, FittedKernel, Plan
from heretic.runs.folder import RunFolder
from heretic.search.fitting.fit import Fitting
from heretic.search.fitting.progress import DEFAULTS, FitOptions, from_content, to_content
from heretic.search.fitting.texts import ShownAt
from heretic.search.study import TimeLimit
from heretic.search.sweep import sweep_plans

PROGRESS = f"{FITS}/progress.safetensors"

PROMPTS = 128
"""Prompts of each direction split that are fitted to. The original's distribution along the replies
to them is kept."""


def fitted_plans(
    model: Model,
    prompts: PromptSets,
    directions: Tensor,
    *,
    folder: RunFolder,
    seed: int,
    shown_at: ShownAt,
    reporter: Reporter,
    time_limit: TimeLimit | None = None,
    options: FitOptions = DEFAULTS,
) -> list[Plan]:
    """The plans at the points of a run's fit, which is made, saved, and added to the model.

    The ablation that it learned from comes last.

    Args:
        prompts: The direction splits and the protected prompts are used.
        directions: float32 [layers + 1, hidden] or [layers + 1, k, hidden].
        time_limit: No round is begun that would end after it, if it takes as long as the one
            before; one is always made.

    Raises:
        StudyError: See `Fitting` and `Fitting.rounds`.
        RunError: The run's files are damaged or cannot be written.
    """
    content = folder.read_file(PROGRESS)
    kept = None if content is None else from_content(content, options)
    teacher = None if kept else _teacher(model, prompts, directions, shown_at, seed, reporter)
    reporter.emit(StageStarted("Fitting the edit's vectors"))
    fitting = Fitting(
        model,
        [*prompts.good[:PROMPTS], *prompts.protected[:PROMPTS]],
        prompts.bad[:PROMPTS],
        directions,
        shown_at,
        seed=seed,
        teacher=teacher,
        options=options,
        progress=kept,
    )
    if fitting.progress.points:
        reporter.emit(Notice(f"The fit goes on after round {len(fitting.progress.points)}"))
    start = perf_counter()
    for progress in fitting.rounds(_counter(reporter)):
        folder.write_file(PROGRESS, to_content(progress, options))
        spent, start = perf_counter() - start, perf_counter()
        if time_limit is not None and time_limit.left() < spent:
            reporter.emit(Notice(f"The time limit ends the fit after round {len(progress.points)}"))
            break
    fit = fitting.progress.fit(fitting.components)
    folder.write_fit(fit.digest, fit.content())
    model.add_fits([fit])
    shown = ", ".join(f"{share:.0%}" for share in fitting.progress.shown)
    reporter.emit(StageFinished(f"{fit.points} points; replies that show it: {shown}"))
    teacher = fitting.progress.teacher
    return [*path_plans(fit), *([] if teacher is None else [teacher])]


def _teacher(
    model: Model,
    prompts: PromptSets,
    directions: Tensor,
    shown_at: ShownAt,
    seed: int,
    reporter: Reporter,
) -> Plan | None:
    """The last plan of a gradient sweep; None, with a warning, if the sweep fails."""
    reporter.emit(StageStarted("Gradient sweep"))
    try:
        plans = sweep_plans(
            model,
            prompts.good[:PROMPTS],
            prompts.bad[:PROMPTS],
            directions,
            protected=prompts.protected[:PROMPTS],
            row_normalization="none",
            shows=lambda reply: shown_at("", reply) is not None,
            seed=seed,
            on_step=_counter(reporter),
        )
    except StudyError as error:
        text = f"The fit does without an ablation's replies: {error.message}"
        reporter.emit(Notice(text, level="warning"))
        return None
    reporter.emit(StageFinished("its last plan says what to write instead"))
    return plans[-1]


def _counter(reporter: Reporter) -> Callable[[int, int], None]:
    return lambda done, total: reporter.emit(StageProgress(done, total, "steps"))


def path_plans(fit: Fit) -> list[Plan]:
    """A plan for each point of a fit's path, with row normalization `none`."""
    return [
        Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={name: FittedKernel(fit.digest, float(point)) for name in fit.components},
            row_normalization="none",
            rank=fit.rank,
        )
        for point in range(fit.points)
    ]
