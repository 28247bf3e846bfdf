"""Tables and pictures of the searches."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peer.report import table
from benchmarks.search_parts.records import LIMITS, MODELS, TOOLS, Run, of

COLOURS = {
    "peer": "#7f7f7f",
    "tpe": "#1f77b4",
    "gp": "#9467bd",
    "gradient": "#2ca02c",
    "auto": "#d62728",
}


def report(runs: Sequence[Run], command: str) -> str:
    """All tables, as Markdown."""
    machine = ", ".join(sorted({run.machine for run in runs}))
    parts = ["# Searches compared", f"Processor: {machine}. Made by:\n\n    {command}"]
    for model in MODELS:
        rows = [row for tool in TOOLS if (row := _row(runs, model, tool))]
        if rows:
            header = ["", "seeds", "trials", "hypervolume", "seconds", "to the peer's hypervolume"]
            header += [f"KL at <= {limit}" for limit in LIMITS]
            parts += [f"## Model: {model}", table(header, rows), _held_out(runs, model)]
    noted: dict[str, list[str]] = {}
    for run in runs:
        if run.note:
            noted.setdefault(run.note, []).append(run.name)
    notes = [f"- {', '.join(names)}: {note}" for note, names in noted.items()]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def _row(runs: Sequence[Run], model: str, tool: str) -> list[object] | None:
    """Medians over seeds."""
    own = of(runs, model, tool)
    if not own:
        return None
    peer = of(runs, model, "peer")
    goal = statistics.median(run.final for run in peer) if peer else None
    reached = [] if goal is None else [run.reached(goal) for run in own]
    return [
        tool,
        ", ".join(str(run.seed) for run in own),
        f"{statistics.median(len(run.trials) for run in own):.0f}",
        f"{statistics.median(run.final for run in own):.4f}",
        f"{statistics.median(run.trials[-1].at for run in own):.0f}",
        _times(reached),
        *(_least(own, limit) for limit in LIMITS),
    ]


def _times(reached: Sequence[float | None]) -> str:
    known = [at for at in reached if at is not None]
    if not known:
        return "-"
    text = f"{statistics.median(known):.0f} s"
    return text if len(known) == len(reached) else f"{text} ({len(known)} of {len(reached)})"


def _least(runs: Sequence[Run], limit: int) -> str:
    found = [value for run in runs if (value := run.least(limit)) is not None]
    if not found:
        return "-"
    text = f"{statistics.median(found):.4f}"
    return text if len(found) == len(runs) else f"{text} ({len(found)} of {len(runs)})"


def _held_out(runs: Sequence[Run], model: str) -> str:
    """Search figures beside held-out ones, of the trials that a user would choose."""
    rows = [
        [
            run.tool,
            run.seed,
            f"{run.held_out['search'][0]:.2f}",
            f"{run.held_out['held_out'][0]:.2f}",
            f"{run.held_out['search'][1]:.4f}",
            f"{run.held_out['held_out'][1]:.4f}",
        ]
        for tool in TOOLS
        for run in of(runs, model, tool)
        if run.held_out is not None
    ]
    if not rows:
        return ""
    header = ["least KL at <= 3", "seed", "refusals, search", "held out", "KL, search", "held out"]
    return table(header, rows)


def draw(runs: Sequence[Run], model: str, folder: Path) -> None:
    """Hypervolume against time, and the fronts, each as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for tool in TOOLS:
        for number, run in enumerate(of(runs, model, tool)):
            label = tool if number == 0 else None
            style = {"color": COLOURS[tool], "label": label}
            times = [trial.at for trial in run.trials]
            left.step(times, run.volumes(), where="post", alpha=0.8, **style)
            whole = [trial for trial in run.trials if not trial.bound]
            best = [
                trial
                for trial in whole
                if not any(
                    other.refusals <= trial.refusals
                    and other.kl_divergence <= trial.kl_divergence
                    and other != trial
                    for other in whole
                )
            ]
            best.sort(key=lambda trial: trial.refusals)
            x = [100 * trial.refusals for trial in best]
            y = [trial.kl_divergence for trial in best]
            right.step(x, y, where="post", marker="o", markersize=3, alpha=0.8, **style)
    left.set(xscale="log", xlabel="seconds since the search began", ylabel="hypervolume")
    finals = [run.final for run in runs if run.model == model]
    left.set_ylim(min(finals) - 0.05, max(finals) + 0.005)
    right.set(xlim=(-1, 40), xlabel="refusals of 100", ylabel="KL divergence (nats)")
    top = max((value for run in runs if (value := run.least(3)) is not None), default=0.1)
    right.set_ylim(0, 2.5 * top)
    left.legend(loc="lower right")
    right.legend(loc="upper right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(f"Searches on the {model} model")
    figure.savefig(folder / f"search-{model}.png", dpi=110)
    plt.close(figure)
