"""What the models on a run's front say at length, on prompts that nothing saw.

    python -m benchmarks.front_quality RUN --bad FILE --good FILE [--tokens 200] [--bounds 3 10 25]

For the original, and for the least divergence at each bound on the refusals of 100: refused, partly
refused and broken replies to the bad prompts, at 40 tokens and at `--tokens`; the divergence of the
first token, and along 24 tokens of the original's replies to the good prompts; and the capability
set. Prints a Markdown table; `--replies FILE` keeps the replies as JSON lines, to be read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.peer.report import table
from benchmarks.search_parts.quality import HEADER, qualities, reply_lines


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--bad", type=Path, required=True)
    parser.add_argument("--good", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--bounds", type=int, nargs="+", default=[3, 10, 25])
    parser.add_argument("--replies", type=Path)
    given = parser.parse_args()
    kept = ""
    found = qualities(given.run, given.bad, given.good, tokens=given.tokens, limits=given.bounds)
    print(table(HEADER, []))
    for quality, replies in found:
        print(f"| {' | '.join(quality.cells())} |", flush=True)
        kept += reply_lines(quality, replies)
    if given.replies is not None:
        given.replies.write_text(kept, encoding="utf-8")


if __name__ == "__main__":
    main()
