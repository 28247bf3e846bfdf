"""The stages in order, as functions with explicit inputs and typed results.

    settings -> model -> prompts -> residuals -> directions -> [plan -> scores] x trials -> front

Interactive use, settings alone, the library and reproduction are callers of these functions, not
modes inside them. What is found at run time goes into the run's manifest, never into the settings.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heretic import export
from heretic import prompts as prompt_sets
from heretic.baseline import BaselineFile
from heretic.benchmarks.store import figures_of
from heretic.config import Settings
from heretic.directions import (
    cluster_basis,
    difference_directions,
    geometric_median,
    sparing_directions,
    winsorize,
)
from heretic.errors import RunError, StudyError
from heretic.evaluator import EvaluationPrompts, Evaluator
from heretic.events import Notice, Reporter, StageFinished, StageStarted
from heretic.export.provenance import hardware, versions
from heretic.model import Model
from heretic.model.experts import check_variant
from heretic.model.machine import accelerator, device_name
from heretic.model.prefix import find_response_prefix
from heretic.presets import applied
from heretic.prompts import Prompt
from heretic.records import Plan, RowNormalization, RunManifest, Score, Trial
from heretic.runs import RunFolder, digest, find_run
from heretic.scorers import check_scorers
from heretic.scorers.registry import deciding_options
from heretic.search.method import choose_method, sweep_of_run
from heretic.search.study import Study

FEWEST_HELD_OUT = 10
"""With fewer prompts of a kind that are merely left over, a figure says nothing."""

PREFIX_PROMPTS = 100
"""Prompts of each direction split whose replies are compared for a shared prefix."""


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Two splits each of good and bad prompts, and a third one where there are prompts left.

    Attributes:
        good, bad: What directions are found on.
        protected: What is like the bad ones, and to be spared.
        evaluation: What trials are scored on.
        held_out: What neither has seen; the chosen trial is scored on it.
    """

    good: Sequence[Prompt]
    bad: Sequence[Prompt]
    evaluation: EvaluationPrompts
    held_out: EvaluationPrompts | None = None
    protected: Sequence[Prompt] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """A run that is ready to search, export or chat."""

    settings: Settings
    reporter: Reporter
    model: Model
    prompts: PromptSets
    directions: Tensor
    folder: RunFolder
    manifest: RunManifest
    evaluator: Evaluator
    study: Study

    def choice(self, trial: Trial) -> export.Choice:
        """The trial with all that an export says about it."""
        return export.Choice(
            trial=trial,
            directions=self.directions,
            baseline=self.evaluator.baseline,
            manifest=self.manifest,
            settings=self.settings,
        )


# --- single stages -------------------------------------------------------------------------


def load_model(
    settings: Settings, reporter: Reporter, dtypes: Sequence[str] | None = None
) -> Model:
    """Load the model and say what was found.

    Args:
        dtypes: In place of those in the settings, where it is known which one works.
    """
    device = accelerator()
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    reporter.emit(Notice(f"Device: {device_name(device)}{threads}"))
    preset = applied(settings)
    if preset is not None:
        reporter.emit(Notice(preset.line()))
    if settings.behavior:
        reporter.emit(Notice(f"Behavior: {settings.behavior}"))
    reporter.emit(StageStarted(f"Loading {settings.model}"))
    model = Model(settings if dtypes is None else settings.replaced(dtypes=dtypes), reporter)
    gigabytes = sum(p.numel() * p.element_size() for p in model.model.parameters()) / 1e9
    reporter.emit(
        StageFinished(
            f"{model.n_layers} layers, {str(model.dtype).removeprefix('torch.')}, "
            f"{gigabytes:.2f} GB; edits {' and '.join(model.get_abliterable_components())}; "
            f"batch size {model.batch_size}"
        )
    )
    if model.structure.discovered:
        found = ", ".join(model.structure.discoveries())
        reporter.emit(Notice(f"Writers not known by name, found by what they put out: {found}"))
    return model


def load_prompts(
    settings: Settings, reporter: Reporter, *, with_held_out: bool = True
) -> PromptSets:
    """Read the prompt sets; splits that share prompts are reported.

    Args:
        with_held_out: Whether to look for held-out prompts too.

    Raises:
        PromptError: A set cannot be read or is empty.
    """
    reporter.emit(StageStarted("Loading prompts"))
    system = settings.system_prompt
    sets = PromptSets(
        good=prompt_sets.load(settings.good_prompts, system),
        bad=prompt_sets.load(settings.bad_prompts, system),
        evaluation=EvaluationPrompts.load(settings),
    )
    if settings.protected_prompts is not None:
        sets = replace(sets, protected=prompt_sets.load(settings.protected_prompts, system))
    if with_held_out:
        sets = replace(sets, held_out=_held_out(settings, sets))
    evaluation = sets.evaluation
    scored = [prompt for rows in evaluation.by_name().values() for prompt in rows]
    for name, first, second in (
        ("good", sets.good, evaluation.good),
        ("bad", sets.bad, evaluation.bad),
        ("protected", sets.protected, scored),
    ):
        shared = prompt_sets.shared_prompts(first, second)
        if shared:
            reporter.emit(
                Notice(
                    f"{len(shared)} {name} prompts are in both the direction and the evaluation "
                    "split: scores on them flatter the edit.",
                    level="warning",
                )
            )
    reporter.emit(
        StageFinished(
            f"{len(sets.good)} good and {len(sets.bad)} bad for directions, "
            + (f"{len(sets.protected)} protected, " if sets.protected else "")
            + f"{len(evaluation.good)} and {len(evaluation.bad)} for evaluation"
            + (f", {_held_out_text(sets.held_out)}" if with_held_out else "")
        )
    )
    return sets


def _held_out(settings: Settings, sets: PromptSets) -> EvaluationPrompts | None:
    """The third split, if both kinds have prompts enough for it."""
    evaluation, system = sets.evaluation, settings.system_prompt
    good = prompt_sets.held_out(
        settings.good_held_out_prompts,
        [
            (settings.good_evaluation_prompts, evaluation.good),
            (settings.good_prompts, sets.good),
        ],
        system,
        sets.protected,
    )
    bad = prompt_sets.held_out(
        settings.bad_held_out_prompts,
        [(settings.bad_evaluation_prompts, evaluation.bad), (settings.bad_prompts, sets.bad)],
        system,
        sets.protected,
    )
    named = settings.good_held_out_prompts, settings.bad_held_out_prompts
    for rows, specification in zip((good, bad), named, strict=True):
        # However few, prompts that were named are what the user wants to see.
        if len(rows) < (FEWEST_HELD_OUT if specification is None else 1):
            return None
    return EvaluationPrompts(good, bad, evaluation.more)


def _held_out_text(prompts: EvaluationPrompts | None) -> str:
    if prompts is None:
        return "none held out"
    return f"{len(prompts.good)} and {len(prompts.bad)} held out"


def choose_prefix(
    settings: Settings, model: Model, prompts: PromptSets, reporter: Reporter
) -> None:
    """Set the model's response prefix: the setting's, or what replies have in common."""
    if settings.response_prefix != "auto":
        return
    sample = [*prompts.good[:PREFIX_PROMPTS], *prompts.bad[:PREFIX_PROMPTS]]
    reporter.emit(StageStarted("Looking for a response prefix", total=len(sample)))
    model.response_prefix = find_response_prefix(model, sample, settings.chain_of_thought_skips)
    found = model.response_prefix
    reporter.emit(StageFinished(repr(found) if found else "replies have none in common"))


def compute_directions(
    settings: Settings, model: Model, prompts: PromptSets, reporter: Reporter
) -> Tensor:
    """Directions of the direction splits, float32 [layers + 1, hidden].

    [layers + 1, max_rank, hidden] where plans may remove several from a layer: that of the bad
    prompts, that of the protected ones if there are any, those of groups of bad prompts.

    Raises:
        StudyError: The two sets cannot be told apart in any layer.
    """
    sets = {"good": prompts.good, "bad": prompts.bad, "protected": prompts.protected}
    centers = {}
    for name, rows in sets.items():
        if rows:
            reporter.emit(StageStarted(f"Residuals of the {name} prompts", total=len(rows)))
            centers[name] = _center(settings, model, rows)
            reporter.emit(StageFinished())
    good = centers.pop("good")
    found = {
        name: difference_directions(good, center, orthogonalize=settings.orthogonalize_direction)
        for name, center in centers.items()
    }
    directions = found["bad"].unsqueeze(1)
    if prompts.protected:
        directions = sparing_directions(found["bad"], found["protected"])
    if not directions[:, 0].any():
        others = "protected" if found["bad"].any() else "good"
        raise StudyError(
            f"The {others} and the bad prompts leave the same residuals in every layer.",
            remedy="Check that the two prompt sets differ in what triggers the behaviour.",
        )
    if settings.max_rank == 1:
        return directions[:, 0]
    if settings.max_rank <= directions.shape[1]:
        return directions
    reporter.emit(StageStarted("Groups of the bad prompts", total=len(prompts.bad)))
    bad = winsorize(model.get_residuals_batched(prompts.bad), settings.winsorization_quantile)
    basis = cluster_basis(
        directions,
        good,
        bad,
        rank=settings.max_rank,
        orthogonalize=settings.orthogonalize_direction,
        seed=0,
    )
    reporter.emit(StageFinished(f"{settings.max_rank} directions per layer"))
    return basis


def _center(settings: Settings, model: Model, rows: Sequence[Prompt]) -> Tensor:
    """Mean or geometric median of the residuals, float64 [layers + 1, hidden]."""
    if settings.direction_method == "mean":
        return model.get_residual_means(rows, settings.winsorization_quantile)
    residuals = winsorize(model.get_residuals_batched(rows), settings.winsorization_quantile)
    return geometric_median(residuals)


def prepare_directions(settings: Settings, seed: int, reporter: Reporter) -> tuple[Model, Tensor]:
    """Model and directions alone, for applying or reproducing a plan.

    Args:
        seed: Taken for symmetry with a run; directions do not depend on it.
    """
    torch.manual_seed(seed)
    prompts = load_prompts(settings, reporter, with_held_out=False)
    return model_and_directions(settings, prompts, reporter)


def model_and_directions(
    settings: Settings,
    prompts: PromptSets,
    reporter: Reporter,
    *,
    variant: RowNormalization | None = None,
) -> tuple[Model, Tensor]:
    """The model with its response prefix, and directions from the prompts.

    Args:
        variant: By which it will be edited; that of the settings if None.

    Raises:
        ModelError: It cannot be edited that way.
    """
    model = load_model(settings, reporter)
    check_variant(model.writers, variant or settings.row_normalization)
    choose_prefix(settings, model, prompts, reporter)
    return model, compute_directions(settings, model, prompts, reporter)


# --- runs ----------------------------------------------------------------------------------


def fingerprint(settings: Settings, prompts: PromptSets) -> dict[str, Any]:
    """Everything that changes scores but the seed: settings, and the prompts' very words."""
    sets = (prompts.good, prompts.bad, prompts.evaluation.good, prompts.evaluation.bad)
    words: dict[str, Any] = {"words": [_words(rows) for rows in sets]}
    if prompts.protected:
        words["protected"] = _words(prompts.protected)
    if prompts.evaluation.more:
        words["more"] = {name: _words(rows) for name, rows in prompts.evaluation.more.items()}
    values = settings.fingerprint()
    scorer = deciding_options(settings, values["scorer"])
    return {**values, "scorer": scorer, "prompts": digest(words)}


def _words(prompts: Sequence[Prompt]) -> list[tuple[str | None, str]]:
    return [(prompt.system, prompt.user) for prompt in prompts]


def open_folder(settings: Settings, prompts: PromptSets) -> tuple[RunFolder, int]:
    """The run folder of these settings, new or found again, and the run's seed.

    Without a seed in the settings, the latest run that is otherwise the same goes on with its own;
    where there is none, a seed is drawn and recorded.
    """
    code = fingerprint(settings, prompts)
    seed = settings.seed
    if seed is None:
        found = find_run(settings.study_checkpoint_dir, code)
        seed = found.seed if found is not None else secrets.randbelow(2**31)
    name = digest({**code, "seed": seed})
    return RunFolder.open(settings.study_checkpoint_dir, settings.model, name), seed


def prepare(
    settings: Settings, prompts: PromptSets, folder: RunFolder, seed: int, reporter: Reporter
) -> Session:
    """Everything up to the search. A run that exists already is taken up where it stopped.

    Args:
        folder: Of `open_folder`, locked by the caller for as long as the session lasts.
        seed: The run's.
    """
    known = folder.read_manifest()
    # Read before the model loads, so that a mistake is said early.
    start_plans = _start_plans(settings)
    scorers = check_scorers(settings)
    if known is None:
        model, directions = model_and_directions(settings, prompts, reporter)
        folder.save_directions(directions.numpy())
    else:
        model, directions = load_run(settings, folder, known, reporter)
    evaluator = Evaluator(
        settings,
        model,
        directions,
        reporter,
        prompts.evaluation,
        baseline_file=BaselineFile(folder.baseline_path, _baseline_key(settings, prompts, model)),
        scorers=scorers,
    )
    reporter.emit(StageStarted("Scoring the original model"))
    baseline = evaluator.baseline
    reporter.emit(StageFinished(scores_line(baseline)))
    if known is not None:
        _warn_of_changes(known, baseline, reporter)
    manifest = known or new_manifest(settings, prompts, model, seed, baseline)
    if known is None:
        folder.write_manifest(manifest)
    sweep = sweep_of_run(
        settings,
        model,
        prompts.good,
        prompts.bad,
        directions,
        protected=prompts.protected,
        folder=folder,
        seed=seed,
        reporter=reporter,
    )
    method = choose_method(settings, model, sweep)
    study = Study(
        folder,
        method.space,
        objectives=evaluator.optimizations,
        seed=seed,
        n_startup_trials=method.n_startup_trials,
        start_plans=[*start_plans, *method.plans],
        sampler=method.sampler,
        plans_at_once=method.plans_at_once,
        patience=settings.patience,
    )
    return Session(
        settings, reporter, model, prompts, directions, folder, manifest, evaluator, study
    )


def _start_plans(settings: Settings) -> tuple[Plan, ...]:
    """The user's own plans.

    Raises:
        RunError: They cannot be read, or remove more directions than the run has.
    """
    plans = read_plans(settings.start_plans) if settings.start_plans else ()
    rank = max((plan.rank for plan in plans), default=1)
    if rank > settings.max_rank:
        raise RunError(
            f"A plan in {settings.start_plans} removes {rank} directions from a layer.",
            remedy=f"Set max_rank to {rank}.",
        )
    return plans


def _baseline_key(settings: Settings, prompts: PromptSets, model: Model) -> str:
    """Digest of all that the unedited model's outputs depend on, the machine included."""
    return digest(
        {
            **fingerprint(settings, prompts),
            "response_prefix": model.response_prefix,
            "dtype": str(model.dtype),
            "hardware": hardware(model),
            "versions": versions(),
        }
    )


def load_run(
    settings: Settings, folder: RunFolder, manifest: RunManifest, reporter: Reporter
) -> tuple[Model, Tensor]:
    """The model of a run as it was searched, and the run's directions; needs no prompts.

    Raises:
        RunError: The directions are damaged or of another model.
    """
    found = manifest.found
    model = load_model(settings, reporter, dtypes=[found["dtype"]])
    model.response_prefix = str(found["response_prefix"])
    model.take_up(int(found["batch_size"]))
    directions = torch.from_numpy(folder.load_directions())
    # Between the two stand the directions of a layer's basis, if there are several.
    if (directions.shape[0], directions.shape[-1]) != (model.n_layers + 1, model.hidden_size):
        raise RunError(
            f"The directions in {folder.path} are of another model: {tuple(directions.shape)}.",
            remedy="Set checkpoint_action to restart.",
        )
    return model, directions


def _warn_of_changes(known: RunManifest, baseline: tuple[Score, ...], reporter: Reporter) -> None:
    """Say so if the original model no longer scores as it did when the run began."""
    recorded = [(row["name"], row["display"]) for row in known.found["baseline"]]
    if [(score.name, score.display) for score in baseline] != recorded:
        before = ", ".join(f"{name} {display}" for name, display in recorded)
        reporter.emit(
            Notice(
                f"The original model scored {before} when this run began: another machine or other "
                "package versions? Old and new trials may not compare.",
                level="warning",
            )
        )


def new_manifest(
    settings: Settings,
    prompts: PromptSets,
    model: Model,
    seed: int,
    baseline: tuple[Score, ...],
) -> RunManifest:
    """What a run is, and what was found when it began."""
    code = fingerprint(settings, prompts)
    return RunManifest(
        model=settings.model,
        digest=digest({**code, "seed": seed}),
        seed=seed,
        fingerprint=code,
        # Consent to run code is given to a command, never by a file.
        settings={**settings.to_dict(), "trust_remote_code": False},
        found={
            "response_prefix": model.response_prefix,
            "batch_size": model.batch_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "layers": model.n_layers,
            "hidden_size": model.hidden_size,
            "components": model.get_abliterable_components(),
            "baseline": [score.to_dict() for score in baseline],
        },
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def search(session: Session, n_trials: int | None = None) -> list[Trial]:
    """Search until `n_trials` trials (by default the setting, or the sweep's) are complete.

    Returns:
        The front.

    Raises:
        KeyboardInterrupt: The user stopped it; what was found is in `session.study`.
        StudyError: Ten trials in a row failed.
    """

    def evaluate(plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
        racing = session.settings.racing
        rivals = [trial.objectives() for trial in session.study.front] if racing else None
        try:
            return session.evaluator.evaluate(plans, rivals)
        finally:
            _record_batch_size(session)  # now: nothing is run at the end of a killed process

    session.study.run(
        evaluate,
        n_trials or session.settings.n_trials,
        session.reporter,
        baseline=session.evaluator.baseline,
        start_plans_only=n_trials is None and session.settings.search == "gradient",
        to_the_end=n_trials is not None,  # whoever asks for more is given more
    )
    return session.study.front


def _record_batch_size(session: Session) -> None:
    """Keep the batch size that memory left, so that the run is taken up with it."""
    manifest, size = session.manifest, session.model.batch_size
    if size < manifest.found["batch_size"]:
        found = {**manifest.found, "batch_size": size}
        session.folder.write_manifest(replace(manifest, found=found))


@dataclass(frozen=True, slots=True)
class Exported:
    """What a saved model scores.

    Attributes:
        saved: Of the files, loaded from disk again, on the evaluation prompts.
        held_out: On held-out prompts, where there are any.
    """

    saved: tuple[Score, ...]
    held_out: export.HeldOut | None


def export_trial(session: Session, trial: Trial, destination: Path, strategy: str) -> Exported:
    """Score a trial on held-out prompts, save it, reload it from disk and score it once more.

    Raises:
        ExportError: It cannot be saved, or does not score as in the search.
        RunError: A file with benchmark results is damaged.
    """
    export.check_export(session.model, destination, strategy)  # before minutes of scoring
    choice = replace(
        session.choice(trial),
        benchmarks=figures_of(session.folder.path, trial),  # a damaged file is said first
        held_out=held_out_scores(session, trial),
    )
    export.save(session.model, choice, destination, strategy=strategy, reporter=session.reporter)
    scores = export.verify(destination, choice, session.evaluator, session.reporter)
    return Exported(scores, choice.held_out)


def held_out_scores(session: Session, trial: Trial) -> export.HeldOut | None:
    """A trial on prompts that neither directions nor search saw; None if there are none.

    Scorers that bring prompts along are left out: theirs are what the search has seen.
    """
    prompts = session.prompts.held_out
    scorers = tuple(scorer for scorer in session.evaluator.scorers if not scorer.sets())
    if prompts is None or not scorers:
        return None
    session.evaluator.release()  # two caches need not fit side by side
    session.reporter.emit(StageStarted("Scoring the chosen trial on held-out prompts"))
    evaluator = Evaluator(
        session.settings,
        session.model,
        session.directions,
        session.reporter,
        prompts,
        scorers=scorers,  # as they are: a local judge need not be loaded twice
    )
    before, after = evaluator.baseline, evaluator.evaluate([trial.plan])[0]
    evaluator.release()
    session.reporter.emit(
        StageFinished(f"{scores_line(after)} (search: {scores_line(trial.scores)})")
    )
    return export.HeldOut(before, after, len(prompts.good), len(prompts.bad))


# --- other work ----------------------------------------------------------------------------


def read_plans(path: Path) -> tuple[Plan, ...]:
    """Plans of a JSON file: a plan, a list of them, `front.json`, or `abliteration_params.json`.

    Raises:
        RunError: The file cannot be read or holds no plan.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}.") from error
    rows = data if isinstance(data, list) else [data]
    if not rows:
        raise RunError(f"{path} holds no plan.")
    return tuple(
        Plan.from_dict(row["plan"] if isinstance(row, dict) and "plan" in row else row)
        for row in rows
    )


def scores_line(scores: Sequence[Score]) -> str:
    """Scores in one line."""
    return ", ".join(f"{score.name} {score.display}" for score in scores)
