"""Damage to every byte of every file of a run folder, and what comes of it.

    python -m tests.soak.damage --count 20000

Each damage is one changed byte, one byte replaced by a line end, an end that is lost, or a line
that is lost. What is read afterwards is what was written, or an error; a search never goes on from
something else. Ends with status 1 at the first case that does otherwise.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.damage import all_damages, check_damage
from tests.support.run_case import CHECKED, make_run


def main(count: int, seed: int) -> int:
    """Try `count` damages, drawn from all there are; returns the exit status."""
    with tempfile.TemporaryDirectory() as place:
        run = make_run(Path(place) / "run").path
        damages = []
        for name in CHECKED:
            data = (run / name).read_bytes()
            everywhere = all_damages(len(data), data.count(b"\n"), 1)
            damages += [(name, number, damage) for number, damage in enumerate(everywhere)]
        random.Random(seed).shuffle(damages)
        found: Counter[str] = Counter()
        for name, number, damage in damages[:count]:
            try:
                is_error = check_damage(run, Path(place) / "copy", name, damage)
            except BaseException:
                print(f"{name}: damage {number}", file=sys.stderr)
                raise
            found[f"{name}: {'an error' if is_error else 'no change to what is read'}"] += 1
    for text, times in sorted(found.items()):
        print(f"{times:6} {text}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(main(given.count, given.seed))
