"""The command line of `benchmarks/versus_peer.py`, and the order of things."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.peer.other import (
    best_batch_size,
    default_peer_venv,
    install_peer,
    program_in,
    run_peer,
)
from benchmarks.peer.ours import SCRIPT, ours, run_ours
from benchmarks.peer.processes import say
from benchmarks.peer.records import (
    MEASURED_PACKAGES,
    WAYS,
    Case,
    Measured,
    Round,
    comparisons,
)
from benchmarks.peer.report import report, spread, write


def parsed(arguments: Sequence[str], description: str) -> argparse.Namespace:
    """The options."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("versus_peer.py", None, description, formatter_class=shape)
    add, ways = parser.add_argument, [*WAYS][1:]

    def number(name: str, default: int | list[int], text: str) -> None:
        several = "+" if isinstance(default, list) else None
        add(name, type=int, metavar="N", nargs=several, default=default, help=text)

    number("--new-tokens", [40], "lengths of replies, one or more (40)")
    number("--rounds", 3, "turns of both tools at each length (3)")
    number("--trials", 4, "plans in a round (4)")
    number("--seed", 1, "of the first round; the next round has the next (1)")
    number("--batch-size", 0, "Heretic's (0: it chooses)")
    number("--peer-batch-sizes", [50, 100], "the best is looked for and taken (50 100)")
    add("--dtype", default="bfloat16", help="of the weights, in both tools (bfloat16)")
    add("--check-dtype", default="float32", help="of one more round for the scores; or none")
    add("--ways", nargs="+", choices=ways, default=ways, help="ways to call Heretic (both)")
    add("--last-direction", choices=("peer", "own"), default="peer", help="see above (peer)")
    add("--peer-venv", type=Path, default=default_peer_venv(), help="made where it is missing")
    add("--output", type=Path, default=SCRIPT.with_suffix(".md"), help="and .json")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, case: Case, batch_size: int) -> Round:
    """The peer, then Heretic in each way, on the peer's plans."""
    peer = run_peer(case, batch_size, program_in(options.peer_venv))
    say(f"Peer: {spread(peer.seconds)} s a trial")
    runs = {"peer": peer}
    for way in options.ways:
        runs[way] = run_ours(way, case, peer.plans, options.batch_size)
        say(f"Heretic, {WAYS[way]}: {spread(runs[way].seconds)} s a trial")
    return Round(case, runs)


def planted_model_folder() -> str:
    """The demo's model, made where it is missing, in a process of its own to keep this one small.

    The high-water mark of a process begins at the size of the one that starts it.
    """
    command = [sys.executable, "-m", "heretic.demo.base"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def our_versions() -> dict[str, str]:
    """As `peer_versions`, of the environment this runs in."""
    return {name: version(name) for name in MEASURED_PACKAGES}


def main(description: str) -> int:
    """Measure, print and write; 1 if the tools disagree.

    Args:
        description: What `--help` says.
    """
    if sys.argv[1:2] == ["ours"]:
        ours(Path(sys.argv[2]), Path(sys.argv[3]))
        return 0
    options = parsed(sys.argv[1:], description)
    options.peer_venv = options.peer_venv.absolute()
    versions = {"Peer": install_peer(options.peer_venv), "Heretic": our_versions()}
    model = planted_model_folder()
    rounds: list[Round] = []
    tuning: dict[int, dict[int, Measured]] = {}
    for new_tokens in options.new_tokens:
        case = Case(
            model=model,
            dtype=options.dtype,
            new_tokens=new_tokens,
            trials=options.trials,
            seed=options.seed,
            last_direction=options.last_direction,
        )
        sizes = options.peer_batch_sizes
        program = program_in(options.peer_venv)
        best, tuning[new_tokens] = best_batch_size(case, sizes, program)
        cases = [replace(case, seed=case.seed + number) for number in range(options.rounds)]
        if options.check_dtype not in {"none", case.dtype}:
            cases.append(replace(case, dtype=options.check_dtype))
        for one in cases:
            say(f"{one.title} new tokens, seed {one.seed}")
            rounds.append(measure(options, one, best))
    text = report(rounds, tuning, versions)
    print(text)
    write(options.output, text, rounds, tuning, versions)
    decisive = options.dtype if options.check_dtype == "none" else options.check_dtype
    checked = [one for one in rounds if one.case.dtype == decisive]
    return int(not all(one.same for one in comparisons(checked)))
