"""Results of benchmarks in a run folder: `benchmarks/original.json`, `benchmarks/trial-N.json`.

A file is replaced as a whole after every task. The original's is shared by all trials.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from heretic.atomic import cannot_write, write_atomic
from heretic.benchmarks.results import Measurement, Row
from heretic.errors import RunError

SCHEMA = 1
FOLDER = "benchmarks"


class ResultFile:
    """What one model gave, task by task.

    Args:
        run: The run folder.
        name: `original`, or `trial-N`.

    Raises:
        RunError: The file is damaged, or written by a newer release.
    """

    def __init__(self, run: Path, name: str) -> None:
        self.path = run / FOLDER / f"{name}.json"
        self._measurements = self._read()

    def get(self, key: str) -> Measurement | None:
        """What was measured under this key, if anything."""
        return self._measurements.get(key)

    def put(self, measurement: Measurement) -> None:
        """Keep a measurement; `write` puts it on disk."""
        self._measurements[measurement.key] = measurement

    def write(self, rows: Sequence[Row] = ()) -> None:
        """Replace the file.

        Args:
            rows: The comparison as shown, for readers of the file; never read back.

        Raises:
            RunError: It cannot be written.
        """
        data = {
            "schema": SCHEMA,
            "rows": [asdict(row) for row in rows],
            "measurements": [row.to_dict() for row in self._measurements.values()],
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
