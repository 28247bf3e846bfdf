"""The trackers, each behind three calls: begin, log, end. They run in the child process only.

Whatever a library would tell of the machine by itself (its name, the user, the program and its
arguments, the repository, packages, load) is switched off.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "heretic"
STATUS = {"done": "FINISHED", "stagnant": "FINISHED", "time": "FINISHED", "failed": "FAILED"}
"""MLflow's, by the reason of `SearchFinished`; a search that was interrupted is `KILLED`."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a tracker is told first.

    Attributes:
        run: The run's id for trackers, under which it goes on later.
        folder: Where the user is: local trackers write there.
        address: Of a server; empty for what the tracker's own variables say.
        settings: Those that are plain figures.
    """

    run: str
    folder: Path
    address: str
    settings: Mapping[str, float]


class Service(Protocol):
    """A tracker; whatever it raises ends the child process, not the search."""

    def begin(self, beginning: Beginning) -> None:
        """Begin or go on with a run."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell figures.

        Args:
            step: The number of the trial.
        """

    def end(self, reason: str) -> None:
        """End the run, and wait until all is written or sent.

        Args:
            reason: That of `SearchFinished`.
        """


class WeightsAndBiases:
    """`wandb`: https://docs.wandb.ai. Its own variables count (`WANDB_MODE`, `WANDB_PROJECT`)."""

    def begin(self, beginning: Beginning) -> None:
        """Begin a run of that id; offline, a folder `wandb` is written."""
        import wandb

        settings: dict[str, Any] = {
            "silent": True,
            "console": "off",
            "disable_git": True,
            "disable_code": True,
            "disable_job_creation": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
            "host": "",
            "program": "",
        }
        if beginning.address:
            settings["base_url"] = beginning.address
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=beginning.folder,
            id=beginning.run,
            name=beginning.run,
            config=dict(beginning.settings),
            resume="allow",
            settings=wandb.Settings(**settings),
        )
        self._run.define_metric("*", step_metric="trial")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell figures; they have the trial's number as their axis."""
        self._run.log({"trial": step, **figures})

    def end(self, reason: str) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if reason in STATUS and reason != "failed" else 1)


class MLflow:
    """`mlflow-skinny`, by its client, which adds no tags of its own (https://mlflow.org/docs)."""

    TAG = "heretic.run"

    def begin(self, beginning: Beginning) -> None:
        """Begin a run, or go on with the one that has the id as a tag."""
        from mlflow import MlflowClient

        named = beginning.address or os.environ.get("MLFLOW_TRACKING_URI", "")
        self._client = MlflowClient(named or f"sqlite:///{beginning.folder / 'mlflow.db'}")
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), beginning)
        found = self._client.search_runs(
            [experiment], f"tags.`{self.TAG}` = '{beginning.run}'", max_results=1
        )
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        made = self._client.create_run(
            experiment, tags={self.TAG: beginning.run}, run_name=beginning.run
        )
        self._run = made.info.run_id
        for name, value in beginning.settings.items():
            self._client.log_param(self._run, name, value)

    def _experiment(self, name: str, beginning: Beginning) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = not beginning.address and "MLFLOW_TRACKING_URI" not in os.environ
        place = (beginning.folder / "mlruns").as_uri() if local else None
        return str(self._client.create_experiment(name, artifact_location=place))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell figures, in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, reason: str) -> None:
        """Say how the search ended."""
        self._client.set_terminated(self._run, STATUS.get(reason, "KILLED"))


SERVICES: Mapping[str, type[Service]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
"""By the values of the setting `track`, which are names of modules too."""
