"""Measures `heretic --help`, from the start of the process to its end.

    python benchmarks/help_time.py [RUNS]

Prints the median, the fastest and the slowest of RUNS (default 15) runs after one that warms the
file cache, and the median processor time, which other work on the machine hardly moves.

The target is a median of at most 0.3 s; exit status 1 if it is missed.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time

TARGET_SECONDS = 0.3


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Wall-clock and processor time of one run of the command line, in seconds."""
    start, used = time.perf_counter(), processor_seconds()
    subprocess.run(
        [sys.executable, "-m", "heretic", *arguments], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start, processor_seconds() - used


def processor_seconds() -> float:
    """User and system time of all processes started so far."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> int:
    """Measure, print, compare with the target."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    seconds(["--help"])
    measured = [seconds(["--help"]) for _ in range(runs)]
    times = [wall for wall, _ in measured]
    median = statistics.median(times)
    processor = statistics.median(used for _, used in measured)
    print(
        f"heretic --help: median {median * 1000:.0f} ms of {runs} runs "
        f"({min(times) * 1000:.0f} to {max(times) * 1000:.0f} ms), "
        f"processor time {processor * 1000:.0f} ms, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}; "
        f"target {TARGET_SECONDS * 1000:.0f} ms"
    )
    return int(median > TARGET_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
