"""Workers for a run's search: what they do, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from heretic.cluster.crew import Batch, Job, Rivals, Score
from heretic.cluster.pool import WorkerPool
from heretic.cluster.ray_crew import RayCrew, Share
from heretic.cluster.ray_start import (
    check_address,
    joined_ray,
    local_ray,
    nodes_of_ray,
    ray_package,
    share_of,
)
from heretic.config.settings import Settings
from heretic.errors import HereticError, SettingsError
from heretic.evaluator.baseline import from_content, to_content
from heretic.evaluator.library import LibraryEvaluator
from heretic.events import StageFinished, StageStarted
from heretic.method.fits import Fit
from heretic.model.library import LibraryModel
from heretic.prompts import EvaluationPrompts
from heretic.records.trial import Trial
from heretic.scorers import load_scorers
from heretic.search.trying import tried
from heretic.system.adapters import model_identity
from heretic.system.display import counted
from heretic.system.hub import plugin_identity
from heretic.system.machine import accelerator, free_memory, versions

if TYPE_CHECKING:
    from heretic.pipeline.run import Session


def check_workers(settings: Settings) -> None:
    """Say before any work what would stop workers later.

    Raises:
        SettingsError: A cluster is named, and no workers.
        HereticError: Ray or GPUs are missing, or the cluster must not be joined; see
            `check_address`.
    """
    if not settings.workers:
        if settings.ray_address:
            raise SettingsError(
                "ray_address is set, and workers is 0: nothing would run there.",
                remedy="Say how many workers it gets (--workers), or leave --ray-address out.",
            )
        return
    if find_spec("ray") is None:
        ray_package()  # raises what says how to install it
    if settings.ray_address:
        allowed = settings.allow_unauthenticated
        check_address(settings.ray_address, allow_unauthenticated=allowed)
    _check_gpus(settings, _gpus_of_each(settings))


def _gpus_of_each(settings: Settings) -> int:
    if settings.gpus_per_worker is not None:
        return settings.gpus_per_worker
    return 1 if accelerator().type == "cuda" else 0


@contextmanager
def workers_of(session: Session) -> Iterator[WorkerPool]:
    """Start the workers that the settings ask for; they end with the context.

    Raises:
        HereticError: As `check_workers`; or Ray does not start, the cluster must not be joined, or
            GPUs are missing.
    """
    settings, reporter = session.settings, session.reporter
    check_workers(settings)  # a run that was reopened was not checked
    data = replica_data(session)
    # The originals' states that a search keeps; the model stays, for what comes after.
    session.evaluator.release()
    free_memory()
    gpus = _gpus_of_each(settings)
    job = Job(*proofs(settings), open_replica, data)
    reporter.emit(StageStarted("Starting Ray"))
    with _ray(settings, gpus, data.size):
        nodes = nodes_of_ray()
        check_nodes(nodes, gpus)
        share = share_of(nodes, settings.workers, gpus)
        reporter.emit(StageFinished(_told(settings, share)))
        crew = RayCrew(job, share)
        try:
            yield WorkerPool(
                crew,
                settings.workers,
                reporter,
                at_once=session.study.plans_at_once,
                in_batches=settings.worker_mode == "batches",
                rivals=partial(_rivals, session),
                needs=_counted({"CPU": share.cpus, "GPU": share.gpus}) or "room",
            )
        finally:
            crew.close()


def _ray(settings: Settings, gpus: int, room: int) -> AbstractContextManager[None]:
    if settings.ray_address:
        allowed = settings.allow_unauthenticated
        return joined_ray(settings.ray_address, allow_unauthenticated=allowed)
    return local_ray(gpus * settings.workers, room)


def _rivals(session: Session) -> Rivals:
    if not session.settings.racing:
        return None
    return [trial.objectives() for trial in session.study.front]


def _check_gpus(settings: Settings, gpus: int) -> None:
    """Refuse more GPUs than this machine has; nodes of a cluster may still come.

    Raises:
        HereticError: There are fewer.
    """
    wanted, found = settings.workers * gpus, torch.cuda.device_count()
    if wanted > found and not settings.ray_address:
        raise HereticError(
            f"{settings.workers} workers with {gpus} GPUs each need {wanted} GPUs, and this "
            f"machine has {found}.",
            remedy="Set workers or gpus_per_worker lower.",
        )


def check_nodes(nodes: Sequence[Mapping[str, Any]], gpus: int) -> None:
    """Refuse a cluster of which no node can hold a worker: the search would wait for good.

    Args:
        nodes: What each node has, as Ray counts it.
        gpus: GPUs of each worker.

    Raises:
        HereticError: No node can.
    """
    most = max((int(node.get("GPU", 0)) for node in nodes), default=0)
    if gpus > most:
        raise HereticError(
            f"A worker needs {_counted({'GPU': gpus})} on one node, and no node of the Ray cluster "
            f"has more than {most}.",
            remedy="Set gpus_per_worker lower, or let such a node join first.",
        )


def _told(settings: Settings, share: Share) -> str:
    each = _counted({"thread": share.threads, "GPU": share.gpus})
    return f"{_counted({'worker': settings.workers})}; each has {each}"


def _counted(counts: Mapping[str, int]) -> str:
    """Counts in words, without those that are 0."""
    told = [counted(count, thing) for thing, count in counts.items() if count]
    return " and ".join(told)


# --- in the worker, and what it is sent ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplicaData:
    """What a worker makes its model and evaluator from: plain data.

    Prompts are sent, so that nodes need no data sets.

    Attributes:
        settings: From `Settings.to_dict`, with the secrets of scorers.
        dtype: Name of the dtype that the driver's model was loaded in.
        prefix: Response prefix.
        date: What chat templates are told when they ask for the time.
        batch_size: Prompts at once.
        directions: float32 [layers + 1, (k,) hidden].
        fits: As `Fit.content`.
        baseline: The unedited model's outputs, as `to_content`.
    """

    settings: Mapping[str, Any]
    prompts: EvaluationPrompts
    dtype: str
    prefix: str
    date: datetime
    batch_size: int
    directions: NDArray[np.float32]
    fits: tuple[bytes, ...]
    baseline: bytes

    @property
    def size(self) -> int:
        """Bytes, about."""
        return self.directions.nbytes + len(self.baseline) + sum(map(len, self.fits))


def replica_data(session: Session) -> ReplicaData:
    """What replicas of a session are made from."""
    model, evaluator = session.model, session.evaluator
    return ReplicaData(
        settings=session.settings.replaced(storage=None).to_dict(),
        prompts=session.prompts.evaluation,
        dtype=str(model.dtype).removeprefix("torch."),
        prefix=model.response_prefix,
        date=model.renderer.date,
        batch_size=model.batch_size,
        directions=session.directions.numpy(),
        fits=tuple(session.folder.read_fits().values()),
        baseline=to_content(evaluator.baseline_outputs),
    )


def proofs(settings: Settings) -> tuple[Callable[[], dict[str, str]], dict[str, str]]:
    """What a node is asked before it is sent anything else, and what it has to answer.

    The question holds no setting but the names of the model and of scorers.
    """
    plugins = {one.name: one.plugin for one in settings.scorers}
    ask = partial(proof, settings.model, settings.model_commit, plugins)
    return ask, ask()


def proof(model: str, commit: str | None, plugins: Mapping[str, str]) -> dict[str, str]:
    """What has to be equal on all nodes: versions of packages, and digests of model and plugins.

    Args:
        plugins: Plugin of each scorer, by the scorer's name.
    """
    scorers = {f"scorer {name}": plugin_identity(plugin) for name, plugin in plugins.items()}
    return {**versions(), f"model {model}": model_identity(model, commit), **scorers}


def open_replica(data: ReplicaData) -> Score:
    """Load the model, and return what scores plans by it.

    Raises:
        HereticError: The model, a scorer or a fit cannot be loaded.
    """
    settings = Settings.restore(data.settings)
    model = LibraryModel(settings.replaced(dtypes=[data.dtype]))
    model.response_prefix = data.prefix
    model.renderer.date = data.date
    model.take_up(data.batch_size)
    model.add_fits(map(Fit.from_content, data.fits))
    evaluator = LibraryEvaluator(
        settings,
        model,
        torch.from_numpy(data.directions.copy()),  # Ray's own memory cannot be written to
        prompts=data.prompts,
        scorers=load_scorers(settings),
    )
    evaluator.take_baseline(from_content(data.prompts.by_name(), data.baseline))

    def score(batch: Batch, rivals: Rivals) -> list[Trial]:
        found = tried(
            lambda plans: evaluator.evaluate(plans, rivals), evaluator.optimizations, batch
        )
        return [trial for trial, _ in found]

    return score
