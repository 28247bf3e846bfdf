"""Measures a trial of Heretic against a trial of its peer, `heretic-llm` 1.4.0.

    python benchmarks/versus_peer.py [--new-tokens 40 100] [--rounds 3] [--trials 4]

Both tools get the same planted model (that of the demo), the same 100 + 100 evaluation prompts, the
same directions' prompts, plans, dtype and reply lengths, and the row normalization `none`, whose
edit is the same in both. They run in turn (A B A B), each time in a process of its own. In every
round the peer draws new plans at random; Heretic then scores exactly those plans, first one at a
time, then all in one call. Reported are seconds per trial, peak memory (resident), and whether both
see the same refusals (within 2 of 100) and the same KL divergence (within 3%).

Directions: the peer takes the last layer's from hidden states that have passed the model's final
norm, Heretic from the layer's true output. So that both make the same edit, Heretic is given the
peer's kind of last direction here; `--last-direction own` shows what its own does.

The peer is a black box: it is installed into a virtual environment of its own, run by its command
line, and known by what it writes into its journal. It gets the fastest of a few batch sizes, which
are tried first; Heretic gets what it chooses by itself, as a user would.

One more round runs in float32 and settles whether both see the same: in bfloat16 rounding alone
moves the KL divergence of a small edit by a few per cent, the peer's own from one batch size to
another too, which is told with the batch sizes.

Writes a Markdown table and, next to it, everything measured as JSON. Exit status 1 if the two
tools disagree there; a missed target for the time is only printed. Linux and macOS.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script sees its own folder only; its parts are imported as tests import theirs.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.peer.command import main

    sys.exit(main(__doc__ or ""))
