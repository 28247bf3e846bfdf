"""Where sections find the planted model. Loads torch only if the model must be made."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gpu_parts.sizes import Job


def planted(job: Job) -> tuple[Path, str]:
    """The folder of the demo's planted model, or of what stands in for it, and its name.

    The first section that asks finds or makes it; the others read where it is.
    """
    kept = job.work / "planted.json"
    if not kept.exists():
        from benchmarks.gpu_parts.standin import found_or_made

        place, told = found_or_made(job)
        kept.write_text(json.dumps([str(place), told]), encoding="utf-8")
    folder, name = json.loads(kept.read_text(encoding="utf-8"))
    return Path(folder), name
