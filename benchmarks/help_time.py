"""Measures `heretic --help`, from the start of the process to its end.

    python benchmarks/help_time.py [RUNS]

Prints the median, the fastest and the slowest of RUNS (default 15) runs after one that warms the
file cache. The target is a median of at most half a second; exit status 1 if it is missed.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time

TARGET_SECONDS = 0.5


def seconds(arguments: list[str]) -> float:
    """Wall-clock time of one run of the command line, in seconds."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "heretic", *arguments], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def main() -> int:
    """Measure, print, compare with the target."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    seconds(["--help"])
    times = [seconds(["--help"]) for _ in range(runs)]
    median = statistics.median(times)
    print(
        f"heretic --help: median {median * 1000:.0f} ms of {runs} runs "
        f"({min(times) * 1000:.0f} to {max(times) * 1000:.0f} ms), "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}; "
        f"target {TARGET_SECONDS * 1000:.0f} ms"
    )
    return int(median > TARGET_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
