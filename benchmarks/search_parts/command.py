"""The command line of `benchmarks/search.py`, and the order of things."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peer.command import planted_model_folder
from benchmarks.peer.other import default_peer_venv, install_peer
from benchmarks.peer.processes import say
from benchmarks.peer.report import machine
from benchmarks.real_model import real_model
from benchmarks.search_parts.ours import run_ours, with_quality
from benchmarks.search_parts.peer import run_peer
from benchmarks.search_parts.records import MODELS, TOOLS, Run, read_run, read_runs
from benchmarks.search_parts.report import draw, report

from heretic.config.behaviors import OWN_FOLDER
from heretic.demo.data import prompt_file

HERE = Path(__file__).resolve().parents[1]
KINDS = {"good": "ordinary", "bad": "topic"}
TRAINING = "[:100]"
"""Of the planted models' direction prompts, as the peer had them."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model and its prompts.

    Attributes:
        kinds: `good` and `bad`, with the beginnings of their files' names.
        training: Split of the direction prompts.
    """

    folder: Path
    prompts: Path
    kinds: Mapping[str, str]
    training: str = ""

    def file(self, kind: str, part: str) -> Path:
        """A file of prompts."""
        return self.prompts / f"{self.kinds[kind]}_{part}.txt"


def case(model: str) -> Case:
    """A model by its name in the records; it is made where it is missing."""
    if model == "real":
        declined = {"good": "ordinary", "bad": "declined"}
        return Case(real_model(say), OWN_FOLDER / "disclaimer", declined)
    if model == "demo":
        folder = Path(planted_model_folder())
        return Case(folder, prompt_file("topic_train").parent, KINDS, TRAINING)
    from benchmarks.search_parts.second_topic import MONEY, second_model

    return Case(second_model(say), MONEY.prompts, KINDS, TRAINING)


def run(tool: str, model: str, seed: int, options: argparse.Namespace) -> None:
    """One search, and the quality of its front; what is kept already is not made again."""
    kept = options.data / f"{model}-{tool}-{seed}.json"
    done = read_run(kept) if kept.exists() else None
    if done is not None and (done.quality or tool == "peer"):
        return
    work = default_peer_venv().parent / "search" / f"{tool}-{model}-{seed}"
    found = case(model)
    if done is None:
        search = _peer if tool == "peer" else _ours
        done = replace(search(tool, model, seed, found, work, options), machine=machine())
        done.write(options.data)
    if tool != "peer":
        held_out = found.file("bad", "held_out"), found.file("good", "held_out")
        with_quality(done, work, *held_out).write(options.data)


def _peer(
    tool: str, model: str, seed: int, found: Case, work: Path, options: argparse.Namespace
) -> Run:
    install_peer(default_peer_venv())
    sets = {
        f"{kind}_{name}prompts": found.file(kind, part)
        for kind in KINDS
        for name, part in (("", "train"), ("evaluation_", "test"))
    }
    return run_peer(
        model,
        found.folder,
        sets,
        dtype=options.peer_dtype,
        trials=options.peer_trials,
        seed=seed,
        new_tokens=options.new_tokens,
        work=work,
        seconds=options.peer_seconds,
    )


def _ours(
    tool: str, model: str, seed: int, found: Case, work: Path, options: argparse.Namespace
) -> Run:
    values = {}
    for kind in KINDS:
        values[f"{kind}-prompts.dataset"] = str(found.file(kind, "train"))
        if found.training:
            values[f"{kind}-prompts.split"] = found.training
        values[f"{kind}-evaluation-prompts.dataset"] = str(found.file(kind, "test"))
    return run_ours(
        model,
        found.folder,
        values,
        search=tool,
        seed=seed,
        trials=options.trials,
        new_tokens=options.new_tokens,
        work=work,
    )


def parsed(description: str) -> argparse.Namespace:
    """The options."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("search.py", None, description, formatter_class=shape)
    add = parser.add_argument
    add("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add("--trials", type=int, default=24, help="of ours (24)")
    add("--peer-trials", type=int, default=60)
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
                run(tool, model, seed, options)
    runs = read_runs(options.data)
    text = report(runs, shlex.join(["python", *sys.argv]))
    print(text)
    (HERE / "search.md").write_text(text, encoding="utf-8")
    for model in dict.fromkeys(found.model for found in runs):
        draw(runs, model, HERE)
