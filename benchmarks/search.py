"""Compares searches: hypervolume against time, and the least damage at few refusals.

    python benchmarks/search.py [--tools peer tpe ablation fitted] [--models demo second real]
        [--seeds 1 2 3] [--trials 24] [--peer-trials 60] [--new-tokens 40] [--data FOLDER]

Each tool searches on two planted models (the demo's, and one with another topic and another seed)
and on one that learned its refusals in training, on the same prompts (on the last, ours have 400
direction prompts, the peer 100 of them), with its own defaults beyond them; the peer, `heretic-llm`
1.4.0, is a black box in an environment of its own. Ours are run by their command and timed from its
start; of each front, the plans that a user would choose are measured on held-out prompts and at
length (see `benchmarks/front_quality.py`).

Every search that ends is kept in the data folder and not made again, and ours go on where they were
stopped, so a campaign of hours can be stopped at any time. `--peer-seconds S` counts the peer's
trials with S seconds each, for a journal that was made while the machine was busy. Writes tables
(search.md) and pictures beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script sees its own folder only; its parts are imported as tests import theirs.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.search_parts.command import main

    main(__doc__ or "")
