"""A long search of a tiny model in one process: memory, file handles, journal and time stay flat.

    python -m tests.soak.long_use --count 1000

The search is what `heretic --n-trials 1000` does, under `auto`. Ends with status 1 if one of the
figures grows, or if reading 1,000 trials takes a second.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from heretic import pipeline
from heretic.config.settings import Settings
from heretic.events import Event, TrialFinished
from heretic.runs.folder import RunFolder
from heretic.search.learned import MOST_LEARNED_FROM
from tests.support import tiny

WARM = MOST_LEARNED_FROM + 50
"""Trials after which nothing may grow: the sampler learns from as many as it ever does, and caches
have been filled."""

FEWEST = WARM + 100

MOST_MEGABYTES = 0.03
"""Growth of memory for each trial that is allowed: its record is kept in memory."""

MOST_SLOWER = 2.0
"""How much slower a trial at the end may be than one after the warm-up."""


@dataclass(frozen=True, slots=True)
class Sample:
    """State of the process after a trial."""

    seconds: float
    megabytes: float
    handles: int
    journal: int


class Watcher:
    """A reporter that takes a sample after each trial."""

    def __init__(self) -> None:
        self.folder: RunFolder | None = None
        self.samples: list[Sample] = []
        self._last = perf_counter()

    def emit(self, event: Event) -> None:
        """Take a sample after a trial."""
        if not isinstance(event, TrialFinished) or self.folder is None:
            return
        now = perf_counter()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        self.samples.append(
            Sample(
                now - self._last,
                resident / 1e6,
                sum(1 for _ in Path("/proc/self/fd").iterdir()),
                self.folder.journal_path.stat().st_size,
            )
        )
        self._last = now
        if len(self.samples) % 50 == 0:
            seconds = median(sample.seconds for sample in self.samples[-50:])
            newest = self.samples[-1]
            print(
                f"{len(self.samples):5} trials: {seconds:.3f} s a trial, "
                f"{newest.megabytes:.0f} MB, {newest.handles} handles, journal {newest.journal}",
                flush=True,
            )


def settings_of(place: Path) -> Settings:
    """Settings of a search on a tiny model with 12 prompts of each kind."""
    for name, rows in (("good", tiny.GOOD_PROMPTS), ("bad", tiny.BAD_PROMPTS)):
        (place / f"{name}.txt").write_text("\n".join(rows) + "\n")
    sets = {
        f"{kind}{split}_prompts": {"dataset": str(place / f"{kind}.txt")}
        for kind in ("good", "bad")
        for split in ("", "_evaluation")
    }
    scorers = [
        {"plugin": "keyword", "optimization": "minimize"},
        {"plugin": "kl_divergence", "optimization": "minimize"},
    ]
    return Settings(
        model=str(tiny.folder(place / "model")),
        dtypes=["float32"],
        response_prefix="",
        max_response_length=8,
        refusal_markers=["a", "e"],
        seed=3,
        force=True,
        study_checkpoint_dir=place / "checkpoints",
        scorers=scorers,
        **sets,
    )


def searched(place: Path, count: int) -> list[str]:
    """Search; returns what grows."""
    settings, watcher = settings_of(place), Watcher()
    prompts = pipeline.load_prompts(settings, watcher)
    folder, seed = pipeline.open_folder(settings, prompts)
    watcher.folder = folder
    with folder.lock():
        session = pipeline.prepare(settings, prompts, folder, seed, watcher)
        pipeline.search(session, count)
        return growing(watcher.samples, folder, lambda done: pipeline.search(session, done))


def growing(samples: list[Sample], folder: RunFolder, resume: Callable[[int], object]) -> list[str]:
    """What grows that should not.

    Args:
        resume: Searches until that many trials are complete, which they are.
    """
    first, window = WARM, 50
    early, late = samples[first : first + window], samples[-window:]
    trials = len(samples) - first
    slower = median(s.seconds for s in late) / median(s.seconds for s in early)
    memory = (late[-1].megabytes - samples[first].megabytes) / trials
    bytes_early = (samples[first].journal - samples[0].journal) / first
    bytes_late = (late[-1].journal - samples[first].journal) / trials
    gc.collect()
    start = perf_counter()
    known = folder.read_trials()
    reading = (perf_counter() - start) / len(known) * 1000
    start = perf_counter()
    resume(len(known))
    resuming = (perf_counter() - start) / len(known) * 1000
    print(
        f"a trial takes {slower:.2f} times as long at the end; {memory:.4f} MB, "
        f"{bytes_late:.0f} bytes of journal ({bytes_early:.0f} before) for each; reading 1,000 "
        f"trials takes {reading:.2f} s, resuming them {resuming:.2f} s"
    )
    found = {
        "time": slower > MOST_SLOWER,
        "memory": memory > MOST_MEGABYTES,
        "file handles": late[-1].handles > samples[first].handles,
        "journal": bytes_late > 1.3 * bytes_early,
        "time to read the journal": reading >= 1,
        "time to resume": resuming >= 1,
    }
    return [name for name, grows in found.items() if grows]


def main(count: int) -> int:
    """Search for `count` trials; returns the exit status."""
    with tempfile.TemporaryDirectory() as place:
        found = searched(Path(place), max(count, FEWEST))
    for name in found:
        print(f"{name} grows")
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    sys.exit(main(parser.parse_args().count))
