"""Results of benchmarks in a run folder: `benchmarks/original.json`, `benchmarks/trial-N.json`.

A file is replaced atomically after every task. All trials share the original model's file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from heretic.errors import RunError
from heretic.harness.results import Measurement, PairedMetric, compare
from heretic.records.plan import Plan
from heretic.records.trial import Trial
from heretic.runs.folder import RunFolder, digest
from heretic.system.documents import parse_json

SCHEMA = 1
FOLDER = "benchmarks"
_DELETE = "Delete the file; its benchmarks are then run again."


def key_of_edited(key: str, plan: Plan) -> str:
    """The key of the edited model's measurement, from the key of the original model's."""
    return digest({"key": key, "plan": plan.to_dict()})


def figures_of(run: Path, trial: Trial) -> tuple[PairedMetric, ...]:
    """Stored figures of a trial's plan and of the original model, on whole tasks.

    Only tasks that both models were run on are included. If a task was run with several settings,
    the newest result counts.

    Args:
        run: The run folder.
        trial: A trial of the run.

    Raises:
        RunError: A file is damaged, or was written by a newer release.
    """
    edited = ResultFile(run, trial).measurements
    pairs = {
        before.task: (before, edited[key])
        for before in ResultFile(run).measurements.values()
        # The key depends on the plan: after a restart this number may belong to another plan.
        if (key := key_of_edited(before.key, trial.plan)) in edited and before.limit is None
    }
    return tuple(row for pair in pairs.values() for row in compare(*pair))


class ResultFile:
    """The results of one model, task by task.

    Args:
        run: The run folder.
        trial: The trial whose edited model was measured; None for the original model.

    Attributes:
        path: The file.
        measurements: Key to measurement, the newest last.

    Raises:
        RunError: The file is damaged, or was written by a newer release.
    """

    def __init__(self, run: Path, trial: Trial | None = None) -> None:
        name = "original" if trial is None else f"trial-{trial.number}"
        self._folder = RunFolder(run)
        self._name = f"{FOLDER}/{name}.json"
        self.path = run / self._name
        self.measurements = self._read()

    def put(self, measurement: Measurement) -> None:
        """Add a measurement in memory; `write` saves it."""
        self.measurements[measurement.key] = measurement

    def write(self, rows: Sequence[PairedMetric] = ()) -> None:
        """Write all measurements, replacing the file.

        Args:
            rows: The comparison as shown, for people who read the file; it is never read back.

        Raises:
            RunError: The file cannot be written.
        """
        data = {
            "schema": SCHEMA,
            "rows": [asdict(row) for row in rows],
            "measurements": [row.to_dict() for row in self.measurements.values()],
        }
        text = json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"
        self._folder.write_file(self._name, text)

    def _read(self) -> dict[str, Measurement]:
        try:
            content = self._folder.read_file(self._name)
        except RunError as error:
            raise RunError(error.message, remedy=_DELETE) from error
        if content is None:
            return {}
        try:
            data = parse_json(content, strict=False)
            is_newer = isinstance(data, Mapping) and data["schema"] > SCHEMA
            found = [] if is_newer else [Measurement.from_dict(row) for row in data["measurements"]]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"Cannot read {self.path}: {error!r}.", remedy=_DELETE) from error
        if is_newer:
            raise RunError(f"{self.path} was written by a newer release.", remedy="Update Heretic.")
        return {row.key: row for row in found}
