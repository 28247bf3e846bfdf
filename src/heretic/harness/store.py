"""Results of benchmarks in a run folder: `benchmarks/original.json`, `benchmarks/trial-N.json`.

A file is replaced as a whole after every task. The original's is shared by all trials.
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
from heretic.runs.folder import digest
from heretic.system.files import cannot_write, write_atomic

SCHEMA = 1
FOLDER = "benchmarks"


def key_of_edited(key: str, plan: Plan) -> str:
    """The key of the edited model's measurement, from that of the original's beside it."""
    return digest({"key": key, "plan": plan.to_dict()})


def figures_of(run: Path, trial: Trial) -> tuple[PairedMetric, ...]:
    """Kept figures of a trial's plan on whole tasks, beside the original's.

    Of a task that was run in several ways, the newest; none of a task that the original was not run
    on.

    Args:
        run: The run folder.
        trial: One of the run's.

    Raises:
        RunError: A file is damaged, or written by a newer release.
    """
    edited = ResultFile(run, trial).measurements
    pairs = {
        before.task: (before, edited[key])
        for before in ResultFile(run).measurements.values()
        # The key tells the plan: a run begun anew may have another under this trial's number.
        if (key := key_of_edited(before.key, trial.plan)) in edited and before.limit is None
    }
    return tuple(row for pair in pairs.values() for row in compare(*pair))


class ResultFile:
    """What one model gave, task by task.

    Args:
        run: The run folder.
        trial: Of the edited model; None for the original.

    Attributes:
        path: The file.
        measurements: By key, the newest last.

    Raises:
        RunError: The file is damaged, or written by a newer release.
    """

    def __init__(self, run: Path, trial: Trial | None = None) -> None:
        name = "original" if trial is None else f"trial-{trial.number}"
        self.path = run / FOLDER / f"{name}.json"
        self.measurements = self._read()

    def put(self, measurement: Measurement) -> None:
        """Keep a measurement; `write` puts it on disk."""
        self.measurements[measurement.key] = measurement

    def write(self, rows: Sequence[PairedMetric] = ()) -> None:
        """Replace the file.

        Args:
            rows: The comparison as shown, for readers of the file; never read back.

        Raises:
            RunError: It cannot be written.
        """
        data = {
            "schema": SCHEMA,
            "rows": [asdict(row) for row in rows],
            "measurements": [row.to_dict() for row in self.measurements.values()],
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path.parent, error) from error
        write_atomic(self.path, json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")

    def _read(self) -> dict[str, Measurement]:
        if not self.path.exists():
            return {}
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(data, Mapping) and data["schema"] > SCHEMA:
                raise RunError(f"{self.path} is of a newer release.", remedy="Update heretic-llm.")
            found = [Measurement.from_dict(row) for row in data["measurements"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"Cannot read {self.path}: {error!r}.",
                remedy="Delete the file; its benchmarks are then run again.",
            ) from error
        return {row.key: row for row in found}
