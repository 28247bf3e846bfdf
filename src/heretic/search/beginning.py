"""The plans that a run evaluates first: those of a gradient sweep, or of a fit.

They are made once, kept in the run folder, and read from there when the run goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from heretic.errors import HereticError, RunError, StudyError, is_of_interruption, reason
from heretic.events import Notice, Reporter, StageFinished, StageProgress, StageStarted
from heretic.model.core import Model
from heretic.prompts import PromptSets
from heretic.records.plan import FITS, LayerWeights, Plan, RowNormalization
from heretic.records.trial import Trial
from heretic.runs.folder import RunFolder
from heretic.runs.manifest import RESTART, RunManifest
from heretic.search.fitting.fit import Fitting
from heretic.search.fitting.progress import DEFAULTS, Progress, from_content, to_content
from heretic.search.fitting.texts import ShownAt
from heretic.search.limits import TimeLimit
from heretic.search.method import SearchOptions
from heretic.search.path import path_plans
from heretic.search.sweep import DEFAULTS as SWEEP
from heretic.search.sweep import SweepOptions, sweep_plans

PROMPTS = 128
"""Prompts of each direction split that sweep and fit use. They suffice for what is fitted, and they
limit memory, since the original's distribution on each of them is kept."""

PROGRESS = f"{FITS}/progress.safetensors"

FIT = DEFAULTS
"""Figures of the fit."""

TEACHER = SweepOptions(trade_offs=(0.03, 0.08, 0.2, 0.5, 1.25, 3.1), gone=0.1)
"""Figures of the sweep whose last plan a fit learns from. It ends early: an edit that does more
than is needed writes worse replies, and a whole sweep takes as long as half of the fit."""

STUCK = "the replies hardly change: an ablation shows what to write"
WEAK = "many replies still show it: an ablation is tried too"
"""Why a fit pauses for the sweep of an ablation."""

FITTING = "Fitting the edit's vectors"

AUTO, AUTO_BEFORE = "fitted", "ablation"
"""What the setting `search` means by auto where a fit serves, and what it meant when runs did not
record it."""

_log = logging.getLogger(__name__)


def method_of(options: SearchOptions, run: RunManifest | None, *, tells_words: bool) -> str:
    """What proposes a run's plans: the setting `search`, with auto replaced by what it means.

    Args:
        run: The run's manifest, since a run keeps its method; None for a new run.
        tells_words: Whether a scorer knows which words of a reply show the behaviour. Other
            behaviours, several directions, and behaviours to induce are left to the ablation:
            a fit of them was never measured, has one pair of vectors, or is impossible.

    Raises:
        RunError: The manifest is malformed.
    """
    if options.search != "auto":
        return options.search
    if run is not None:
        return run.search or AUTO_BEFORE
    is_fit = tells_words and options.max_rank == 1 and not options.induces
    return AUTO if is_fit else "ablation"


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a run's first plans are made from.

    Attributes:
        options: The user's; where `search` is auto, another method serves if this one fails.
        method: See `method_of`; only ablation, gradient and fitted have first plans.
        prompts: The direction splits and the protected prompts are used.
        directions: float32 [layers + 1, hidden] or [layers + 1, k, hidden].
        shows: Whether a reply to a bad prompt shows the behaviour, whatever follows.
        shown_at: Where a whole reply shows it.
        time_limit: Of the command. A fit makes one round in any case, and begins no other that
            would end later, if it takes as long as those before.
    """

    options: SearchOptions
    method: str
    model: Model
    prompts: PromptSets
    directions: Tensor
    folder: RunFolder
    seed: int
    shows: Callable[[str], bool]
    shown_at: ShownAt
    reporter: Reporter
    time_limit: TimeLimit | None = None

    @property
    def what(self) -> str:
        """What makes the plans, for messages."""
        return "fit" if self.method == "fitted" else "gradient sweep"


def first_plans(beginning: Beginning) -> Sequence[Plan]:
    """A run's first plans; they are made if the run has none and its method begins with some.

    Where they could not be made, this is tried again until the run has trials; after that it keeps
    its method.

    Raises:
        StudyError: The plans cannot be made, and no other method was allowed.
        RunError: The run's files are damaged or cannot be written; or the plans are gone, and
            cannot be made again.
    """
    if beginning.method not in {"ablation", "gradient", "fitted"}:
        return ()
    folder, reporter, what = beginning.folder, beginning.reporter, beginning.what
    kept, trials = folder.read_sweep(), folder.read_trials()
    if kept:
        return kept
    if kept is not None and trials:
        reporter.emit(
            Notice("The gradient sweep failed when this run began, so it goes on with TPE")
        )
        return ()
    if trials:
        text = f"{folder.sweep_path} is gone: the {what} is made again"
        reporter.emit(Notice(text, level="warning"))
    plans = _made(beginning, again=bool(trials))
    if trials:
        _check_same(plans, trials, folder, what)
    folder.write_sweep(plans)
    return plans


def _check_same(
    plans: Sequence[Plan], trials: Sequence[Trial], folder: RunFolder, what: str
) -> None:
    """Refuse plans that were made again if the run's trials come from others.

    Args:
        what: What made them.

    Raises:
        RunError: They do.
    """
    is_same = folder.had_sweep(plans)
    if is_same is None:  # the run is of an earlier release, which kept no digest
        tried = {trial.plan for trial in trials}
        kernels = [kernel for plan in tried for _, kernel in plan.kernels]
        swept = any(isinstance(kernel, LayerWeights) for kernel in kernels)
        is_same = any(plan in tried for plan in plans) if plans else not swept
    if not is_same:
        raise RunError(
            f"{folder.sweep_path} is gone, and the {what} gives other plans when it is made again.",
            remedy=RESTART,
        )


def _made(beginning: Beginning, *, again: bool) -> Sequence[Plan]:
    """The plans of the method; where it fails and the user left the choice, of the next simpler.

    Args:
        again: Whether the run had them, and has trials.

    Raises:
        StudyError: The user asked for this method.
        RunError: A file cannot be written.
    """
    if beginning.method == "fitted":
        try:
            return _fitted(beginning, ended=again)
        except Exception as error:  # kernels without a backward pass may raise any error
            _go_on(beginning, "fit", "an ablation is searched", error)
    try:
        return _swept(beginning, beginning.options.row_normalization)
    except Exception as error:
        _go_on(beginning, "gradient sweep", "TPE is used", error)
        return ()


def _go_on(beginning: Beginning, what: str, instead: str, error: Exception) -> None:
    """Warn that another method is used, if the user left the choice.

    Raises:
        StudyError: The user did not.
        Exception: The error itself, if it is not one of the method.
    """
    if _is_from_outside(error):
        raise error
    if beginning.options.search == "auto":
        _warn(beginning, f"The {what} failed, {instead}", error)
    elif isinstance(error, HereticError):
        raise error
    else:
        text = f"The {what} failed: {reason(error)}"
        raise StudyError(text, remedy="Set search to tpe or auto.") from error


def _is_from_outside(error: Exception) -> bool:
    """Whether it says nothing of the method: the run's files, or the user's interruption."""
    return isinstance(error, RunError) or is_of_interruption(error)


def _warn(beginning: Beginning, text: str, error: Exception) -> None:
    _log.warning("%s: %s", text, beginning.model.options.model, exc_info=error)
    beginning.reporter.emit(Notice(f"{text}: {reason(error)}", level="warning"))


def _fitted(beginning: Beginning, *, ended: bool) -> list[Plan]:
    """The plans at the points of the run's fit, which is made, saved, and added to the model.

    The ablation that it learned from, if any, comes last. A fit that leaves many replies as they
    were has an ablation beside it too: there the ablation may be better.

    Args:
        ended: Whether the fit had ended already, so that its rounds are all.

    Raises:
        StudyError: See `Fitting` and `Fitting.rounds`.
        RunError: The run's files are damaged or cannot be written.
    """
    folder, model, reporter = beginning.folder, beginning.model, beginning.reporter
    content = folder.read_file(PROGRESS)
    progress = None if content is None else from_content(content, FIT)
    reporter.emit(StageStarted(FITTING))
    if progress is None or not (ended or progress.is_over(FIT)):
        progress = _go_through(beginning, progress)
    if not ended and progress.is_weak(FIT):
        progress.asked, progress.teacher = True, _teacher(beginning, WEAK)
        folder.write_file(PROGRESS, to_content(progress, FIT))
    fit = progress.fit(model.get_abliterable_components())
    folder.write_fit(fit.digest, fit.content())
    model.add_fits([fit])
    shown = ", ".join(f"{share:.0%}" for share in progress.shown)
    told = f"{fit.points} points; replies that show it or are broken: {shown}"
    reporter.emit(StageFinished(told))
    return [*path_plans(fit), *([] if progress.teacher is None else [progress.teacher])]


def _go_through(beginning: Beginning, kept: Progress | None) -> Progress:
    """Make the rounds that are left; an error ends them if there is a point.

    Args:
        kept: How far the fit has come.

    Raises:
        RunError: The progress cannot be written.
    """
    prompts, reporter, progress = beginning.prompts, beginning.reporter, kept
    try:
        fitting = Fitting(
            beginning.model,
            [*prompts.good[:PROMPTS], *prompts.protected[:PROMPTS]],
            prompts.bad[:PROMPTS],
            beginning.directions,
            beginning.shown_at,
            seed=beginning.seed,
            teacher=lambda: _teacher(beginning, STUCK),
            options=FIT,
            progress=kept,
        )
        progress = fitting.progress
        if kept and kept.points:
            reporter.emit(Notice(f"The fit goes on after round {len(kept.points)}"))
        _make_rounds(fitting, beginning)
    except Exception as error:  # as of a kernel, in a later round, on longer texts
        if _is_from_outside(error) or progress is None or not progress.path:
            raise
        text = f"The fit ends after round {len(progress.path)}: {reason(error)}"
        reporter.emit(Notice(text, level="warning"))
    return progress


def _make_rounds(fitting: Fitting, beginning: Beginning) -> None:
    """Go on to the end of the fit, or to the time limit, and save how far it has come."""
    progress, limit = fitting.progress, beginning.time_limit
    begun = start = perf_counter()
    longest = 0.0
    for _ in fitting.rounds(_counter(beginning.reporter)):
        beginning.folder.write_file(PROGRESS, to_content(progress, FIT))
        now = perf_counter()
        longest, start = max(longest, now - start), now
        # With a teacher, everything that was done so far is done again, and a sweep.
        needed = now - begun if progress.is_stuck(FIT) else longest
        if progress.is_over(FIT):
            return
        if limit is not None and progress.path and limit.left() < needed:
            text = f"The time limit ends the fit after round {len(progress.path)}"
            beginning.reporter.emit(Notice(text))
            return


def _counter(reporter: Reporter) -> Callable[[int, int], None]:
    return lambda done, total: reporter.emit(StageProgress(done, total, "steps"))


def _teacher(beginning: Beginning, why: str) -> Plan | None:
    """The last plan of a gradient sweep; None, with a warning, if the sweep fails.

    Args:
        why: Ends the stage of the fit on the display.
    """
    reporter = beginning.reporter
    reporter.emit(StageFinished(why))
    try:
        return _swept(beginning, "none", TEACHER)[-1]
    except Exception as error:
        if _is_from_outside(error):
            raise
        _warn(beginning, "The fit does without an ablation", error)
        return None
    finally:
        reporter.emit(StageStarted(FITTING))


def _swept(
    beginning: Beginning, row_normalization: RowNormalization, options: SweepOptions = SWEEP
) -> list[Plan]:
    """Plans of a gradient sweep.

    Raises:
        StudyError: See `sweep_plans`.
    """
    prompts, reporter = beginning.prompts, beginning.reporter
    reporter.emit(StageStarted("Gradient sweep"))
    plans = sweep_plans(
        beginning.model,
        prompts.good[:PROMPTS],
        prompts.bad[:PROMPTS],
        beginning.directions,
        protected=prompts.protected[:PROMPTS],
        row_normalization=row_normalization,
        shows=beginning.shows,
        seed=beginning.seed,
        induce=beginning.options.induces,
        options=options,
        on_step=_counter(reporter),
    )
    reporter.emit(StageFinished(f"{len(plans)} plans"))
    return plans
