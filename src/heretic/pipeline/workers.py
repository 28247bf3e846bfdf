"""Workers for a run's search: what they do, and where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from heretic.cluster.crew import Job, Rivals
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
from heretic.errors import HereticError
from heretic.events import StageFinished, StageStarted
from heretic.pipeline.replica import open_replica, proof, replica_data
from heretic.system.machine import accelerator, free_memory

if TYPE_CHECKING:
    from heretic.pipeline.run import Session


def check_workers(settings: Settings) -> None:
    """Say before any work what would stop workers later.

    Raises:
        HereticError: Ray is missing, or the cluster must not be joined; see `check_address`.
    """
    if not settings.workers:
        return
    if find_spec("ray") is None:
        ray_package()  # raises what says how to install it
    if settings.ray_address:
        allowed = settings.allow_unauthenticated
        check_address(settings.ray_address, allow_unauthenticated=allowed)


@contextmanager
def workers_of(session: Session) -> Iterator[WorkerPool]:
    """Start the workers that the settings ask for; they end with the context.

    Raises:
        HereticError: Ray does not start, the cluster must not be joined, or GPUs are missing.
    """
    settings, reporter = session.settings, session.reporter
    data = replica_data(session)
    # The originals' states that a search keeps; the model stays, for what comes after.
    session.evaluator.release()
    free_memory()
    gpus = settings.gpus_per_worker
    if gpus is None:
        gpus = 1 if accelerator().type == "cuda" else 0
    told = settings.to_dict()
    job = Job(partial(proof, told), proof(told), open_replica, data)
    reporter.emit(StageStarted("Starting Ray"))
    with _ray(settings, gpus, data.size):
        share = share_of(nodes_of_ray(), settings.workers, gpus)
        _check_gpus(settings, share)
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


def _check_gpus(settings: Settings, share: Share) -> None:
    """Refuse more GPUs than this machine has; nodes of a cluster may still come.

    Raises:
        HereticError: There are fewer.
    """
    import torch

    wanted, found = settings.workers * share.gpus, torch.cuda.device_count()
    if wanted > found and not settings.ray_address:
        raise HereticError(
            f"{settings.workers} workers with {share.gpus} GPUs each need {wanted} GPUs, and this "
            f"machine has {found}.",
            remedy="Set workers or gpus_per_worker lower.",
        )


def _told(settings: Settings, share: Share) -> str:
    gpus = f", {share.gpus} GPUs" if share.gpus else ""
    threads = "1 thread" if share.threads == 1 else f"{share.threads} threads"
    return f"{settings.workers} workers, {threads}{gpus} each"
