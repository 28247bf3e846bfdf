"""Plants faults that published edits have had, and shows which of them Heretic tells.

    python benchmarks/trust.py [--prompts 20] [--work FOLDER]

Models that decline late, evade, or loop (the demo's base model, trained by a small adapter); an
edited model with a scrambled layer; an export whose card claims other figures, and one that lacks a
tensor; a run whose direction is its topic's. Each is given to `heretic compare`, `audit` or
`validate` with their defaults, and so is a control without a fault, of which nothing may be told.

Takes about an hour on two cores. What was made is kept in the work folder and not made again.
Writes trust.md and trust.json beside this file.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

if __name__ == "__main__":
    # A script sees its own folder only; its parts are imported as tests import theirs.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.peer.other import default_peer_venv
    from benchmarks.trust_parts.cases import Workshop, kept, rows
    from benchmarks.trust_parts.report import report

    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("trust.py", None, __doc__, formatter_class=shape)
    parser.add_argument("--prompts", type=int, default=20, help="evaluation prompts of each kind")
    parser.add_argument("--work", type=Path, default=default_peer_venv().parent / "trust")
    options = parser.parse_args()
    found = list(rows(Workshop(options.work, options.prompts)))
    text = report(found, shlex.join(["python", *sys.argv]))
    here = Path(__file__).parent
    (here / "trust.md").write_text(text, encoding="utf-8")
    (here / "trust.json").write_text(kept(found), encoding="utf-8")
    print(text)
