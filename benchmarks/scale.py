"""What many workers do to a search: the driver's load, idle workers, and the front's quality.

    python benchmarks/scale.py driver [--workers N ...] [--trials N] [--seconds S] [--json FILE]
    python benchmarks/scale.py quality [--workers N ...] [--trials N ...] [--seeds N] [--json FILE]
    python benchmarks/scale.py kills [--workers N] [--drivers N] [--trials N] [--json FILE]
    python benchmarks/scale.py local [--workers N ...] [--trials N] [--json FILE]

`driver` and `quality` simulate workers (`scale_parts/crew.py`): a trial takes 10 s in the median,
some take long, some workers end, and scores come from a surrogate (`scale_parts/surrogate.py`).
The search, its journal and its front are real. `driver` prints processor time per trial, and
the share of time in which workers work, if the driver's processor is as fast as this one and
reaches its disk without waiting. `quality` prints the hypervolume at equal numbers of trials,
against a search that waits for each trial, with plans proposed one by one and together.

`kills` kills two real workers on Ray and their driver at random times, and looks at what the run
folder holds in the end.

`local` runs the demo's search with real workers on Ray: trials a minute, beside one process pinned
to one core. It wants a quiet machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.scale_parts.command import main

    main()
