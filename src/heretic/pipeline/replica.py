"""A run's evaluator once more, in another process: all that it needs, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from heretic.cluster.crew import Batch, Rivals, Score
from heretic.config.settings import Settings
from heretic.evaluator.baseline import from_content, to_content
from heretic.evaluator.library import LibraryEvaluator
from heretic.method.fits import Fit
from heretic.model.library import LibraryModel
from heretic.prompts import EvaluationPrompts
from heretic.records.trial import Trial
from heretic.scorers import load_scorers
from heretic.search.trying import tried
from heretic.system.adapters import model_identity
from heretic.system.hub import plugin_identity
from heretic.system.machine import versions

if TYPE_CHECKING:
    from heretic.pipeline.run import Session


@dataclass(frozen=True, slots=True)
class ReplicaData:
    """What a replica is made from. Prompts are sent, so that other nodes need no data sets.

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
        settings=session.settings.to_dict(),
        prompts=session.prompts.evaluation,
        dtype=str(model.dtype).removeprefix("torch."),
        prefix=model.response_prefix,
        date=model.renderer.date,
        batch_size=model.batch_size,
        directions=session.directions.numpy(),
        fits=tuple(session.folder.read_fits().values()),
        baseline=to_content(evaluator.baseline_outputs),
    )


def proof(settings: Mapping[str, Any]) -> dict[str, str]:
    """What has to be equal on all nodes: versions of packages, and digests of model and plugins.

    Args:
        settings: From `Settings.to_dict`.
    """
    known = Settings.restore(settings)
    plugins = {f"scorer {one.name}": plugin_identity(one.plugin) for one in known.scorers}
    model = model_identity(known.model, known.model_commit)
    return {**versions(), f"model {known.model}": model, **plugins}


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
