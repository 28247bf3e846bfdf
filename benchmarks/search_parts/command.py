"""The command line of `benchmarks/search.py`, and the order of things."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.peer.command import planted_model_folder
from benchmarks.peer.other import default_peer_venv, install_peer
from benchmarks.peer.records import SETS
from benchmarks.peer.report import machine
from benchmarks.search_parts.ours import run_ours
from benchmarks.search_parts.peer import read_peer, run_peer
from benchmarks.search_parts.records import MODELS, TOOLS, Run, read_runs
from benchmarks.search_parts.report import draw, report

from heretic.demo.data import prompt_file

HERE = Path(__file__).resolve().parents[1]
HELD_OUT = {
    "good_held_out_prompts": "ordinary_held_out",
    "bad_held_out_prompts": "topic_held_out",
}


def model_and_prompts(model: str) -> tuple[Path, dict[str, Path], dict[str, Path]]:
    """A model's folder; files of the prompts that both tools get; files of held-out ones."""
    if model == "demo":
        folder = Path(planted_model_folder())
        files = {name: prompt_file(name) for name in (*SETS.values(), *HELD_OUT.values())}
    else:
        from benchmarks.search_parts.second_topic import MONEY, second_model

        folder = second_model(print)
        files = {
            name: MONEY.prompts / f"{name}.txt" for name in (*SETS.values(), *HELD_OUT.values())
        }
    both = {setting: files[name] for setting, name in SETS.items()}
    return folder, both, {setting: files[name] for setting, name in HELD_OUT.items()}


def run(tool: str, model: str, seed: int, options: argparse.Namespace) -> Run:
    """One search."""
    folder, both, held_out = model_and_prompts(model)
    shared: Mapping[str, Any] = {
        "seed": seed,
        "trials": options.trials,
        "new_tokens": options.new_tokens,
    }
    if tool == "peer":
        install_peer(default_peer_venv())
        work = default_peer_venv().parent / "search" / f"peer-{model}-{seed}"
        found = run_peer(model, folder, both, work=work, dtype=options.peer_dtype, **shared)
        if options.peer_seconds is not None:
            found = read_peer(model, work / "journals", seed, options.peer_seconds)
        return found
    sets = {**both, **held_out}
    return run_ours(model, folder, sets, search=tool, options={}, **shared)


def parsed(description: str) -> argparse.Namespace:
    """The options."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("search.py", None, description, formatter_class=shape)
    add = parser.add_argument
    add("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add("--trials", type=int, default=60)
    add("--new-tokens", type=int, default=40)
    add("--peer-dtype", default="bfloat16", help="of the peer's weights (bfloat16)")
    add("--peer-seconds", type=float, help="count the peer's trials with so many seconds each")
    add("--data", type=Path, default=HERE / "search_data", help="where searches are kept")
    return parser.parse_args()


def main(description: str) -> None:
    """Make what is missing, then report on all there is.

    Args:
        description: What `--help` says.
    """
    options = parsed(description)
    for seed in options.seeds:
        for model in options.models:
            for tool in options.tools:
                if not (options.data / f"{model}-{tool}-{seed}.json").exists():
                    found = run(tool, model, seed, options)
                    replace(found, machine=machine()).write(options.data)
    runs = read_runs(options.data)
    text = report(runs, shlex.join(["python", *sys.argv]))
    print(text)
    (HERE / "search.md").write_text(text, encoding="utf-8")
    for model in dict.fromkeys(found.model for found in runs):
        draw(runs, model, HERE)
