"""Measures the engine: what each technique saves, decoding against the machine's limit, memory.

    python benchmarks/engine.py                     # the demo's model: some ten minutes on 2 cores
    python benchmarks/engine.py --quick             # a minute: does everything run?
    python benchmarks/engine.py --full              # 100 + 100 prompts, up to 16 plans: hours
    python benchmarks/engine.py --shape qwen3-4b    # random weights, for a GPU; downloads nothing

Three parts, `--parts` chooses:

- `ablation`: seconds per plan with each technique switched off in turn, for plans that leave few
  refusals (long replies) and for plans that leave most, with several plans in one call. "The plain
  way" evaluates one plan at a time, shares nothing, and lets rows leave as they are decided.
  "Verdicts do not end replies": a row leaves at its end token or at full length only. Racing is
  given the front of four other plans. The default takes 12 of the 100 prompts and 15 slots: about
  as many rows for each slot as Heretic has by default with 100 prompts and four plans.
- `decode`: tokens per second with all slots full, against the rate of the model's matrices alone at
  the same number of rows, and on a GPU against memory bandwidth, measured by a large copy: a step
  has to read the weights and each row's keys and values once.
- `memory`: the peak of an evaluation beyond the loaded model, in a process of its own, against the
  key/value cache that the settings imply: slots x (longest prompt + reply) x bytes per token. With
  all prompts and the batch size that Heretic chooses.

Variants run in turn in one process, so that the machine's noise hits all alike; reported are
medians, and ratios within a round. A slow machine gets fewer rounds (`--minutes`). With `--shape`
replies have a fixed length.

Prints Markdown; `--json FILE` also writes every single run.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.engine_parts import ablation, decode, memory, report
from benchmarks.engine_parts.setup import DEMO, SHAPES, Bench, machine, open_bench

PARTS = ("ablation", "decode", "memory")

DEFAULTS: dict[str, Any] = {
    "plans": [1, 4],
    "new_tokens": [40, 100],
    "prompts": 12,
    "slots": 15,
    "rounds": 3,
    "minutes": 6.0,
    "decode_tokens": 32,
    "memory_prompts": 100,
    "memory_slots": 0,
}
FULL = {"plans": [1, 4, 16], "prompts": 100, "slots": 0, "minutes": 0.0}
ON_SHAPES = {**FULL, "decode_tokens": 100}
QUICK = {
    "plans": [1, 2],
    "new_tokens": [16],
    "rounds": 1,
    "decode_tokens": 8,
    "memory_prompts": 20,
    "memory_slots": 24,
}


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options; those not given are filled in by what is to be measured."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--shape", choices=(DEMO, *SHAPES), default=DEMO, help="the model (demo)")
    add("--quick", action="store_true", help="a smoke run")
    add("--full", action="store_true", help="all prompts, Heretic's own batch size, 16 plans")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (all)")
    add("--plans", type=int, nargs="+", metavar="N", help="plans in one call (1 4)")
    add("--new-tokens", type=int, nargs="+", metavar="N", help="lengths of replies (40 100)")
    add("--prompts", type=int, metavar="N", help="in each evaluation set, for the ablation (12)")
    add("--slots", type=int, metavar="N", help="batch size there; 0: Heretic's own (15)")
    add("--rounds", type=int, metavar="N", help="runs of everything (3)")
    add("--minutes", type=float, metavar="N", help="after which the ablation begins no round (6)")
    add("--decode-tokens", type=int, metavar="N", help="a row, when decoding is measured (32)")
    add("--memory-prompts", type=int, metavar="N", help="in each set, for the memory (100)")
    add("--memory-slots", type=int, metavar="N", help="batch size there; 0: Heretic's own (0)")
    add("--dtype", default="", help="of the weights (auto; bfloat16 for random ones on a GPU)")
    add("--json", type=Path, metavar="FILE", help="write every single run there")
    add("--memory-only", action="store_true", help=argparse.SUPPRESS)  # the process of its own
    options = parser.parse_args(arguments)
    for name, value in _defaults(options).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _defaults(options: argparse.Namespace) -> dict[str, Any]:
    values = dict(DEFAULTS)
    if options.shape != DEMO:
        values |= ON_SHAPES
    if options.full:
        values |= FULL
    if options.quick:
        values |= QUICK
        values |= {"prompts": 20, "slots": 24}
    return values


def opened(options: argparse.Namespace, prompts: int, slots: int) -> Bench:
    """The model, with so many prompts in each evaluation set and so many slots."""
    bench = open_bench(
        options.shape,
        prompts=prompts,
        dtype=options.dtype or "auto",
        new_tokens=max(options.new_tokens),
    )
    bench.model.batch_size = slots or bench.automatic_slots
    return bench


def memory_only(options: argparse.Namespace) -> None:
    """The process that `memory.measure` starts."""
    bench = opened(options, options.memory_prompts, options.memory_slots)
    print(memory.as_json(memory.measure_here(bench, options.new_tokens[0])))


def measured(options: argparse.Namespace) -> report.Found:
    """All parts; memory first, while this process holds nothing itself."""
    memories = []
    if "memory" in options.parts:
        longest = str(max(options.new_tokens))
        say(f"Memory at {longest} new tokens")
        arguments = [*sys.argv[1:], "--memory-only", "--new-tokens", longest]
        memories.append(memory.measure(Path(__file__), arguments))
    bench = opened(options, options.prompts, options.slots)
    found = report.Found(command(), machine(bench.model), setting(options, bench))
    found.memory = memories
    if "ablation" in options.parts:
        found.ablation = ablation.measure(
            bench,
            new_tokens=options.new_tokens,
            plans=options.plans,
            rounds=options.rounds,
            minutes=options.minutes,
            say=say,
        )
    if "decode" in options.parts:
        if not options.quick:
            bench.model.batch_size = bench.automatic_slots
        found.decoding = decode.measure(
            bench,
            plans=list(dict.fromkeys([0, 1, max(options.plans)])),
            tokens=options.decode_tokens,
            rounds=options.rounds,
            say=say,
        )
    found.warnings = bench.warnings
    return found


def setting(options: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """What the figures hold for."""
    name = "the demo's planted model" if options.shape == DEMO else f"{options.shape}, random"
    return {
        "model": name,
        "evaluation prompts": f"{options.prompts} + {options.prompts}",
        "slots": bench.model.batch_size,
        "slots by Heretic's choice": bench.automatic_slots,
        "row normalization": bench.settings.row_normalization,
    }


def command() -> str:
    """The command line, without the place on this machine that results go to."""
    shown: list[str] = []
    for argument in sys.argv[1:]:
        if shown[-1:] == ["--json"]:
            shown.pop()
        elif not argument.startswith("--json="):
            shown.append(argument)
    return f"python benchmarks/engine.py {shlex.join(shown)}".rstrip()


def say(text: str) -> None:
    """Progress, on standard error: standard output holds the report only."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print and write."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    options = parsed(sys.argv[1:])
    if options.memory_only:
        memory_only(options)
        return 0
    found = measured(options)
    print(report.markdown(found))
    if options.json is not None:
        content = json.dumps(report.as_data(found), indent=1) + "\n"
        options.json.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
