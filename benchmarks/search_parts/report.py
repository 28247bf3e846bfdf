"""Tables and pictures of the searches."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peer.report import table
from benchmarks.search_parts.quality import HEADER
from benchmarks.search_parts.records import LIMITS, MODELS, TOOLS, Run, of

COLOURS = {"peer": "#7f7f7f", "tpe": "#1f77b4", "ablation": "#2ca02c", "fitted": "#d62728"}

FEW = 0.03
"""Rate of refusals whose divergence scales the picture of the fronts."""

USABLE = 10
"""Refusals of 100 of a first plan that one could use."""


def report(runs: Sequence[Run], command: str) -> str:
    """All tables, as Markdown."""
    machines = "; ".join(sorted({run.machine for run in runs}))
    parts = ["# Searches compared", f"Processors: {machines}. Made by:\n\n    {command}", READING]
    for model in MODELS:
        rows = [row for tool in TOOLS if (row := _row(runs, model, tool))]
        if rows:
            header = ["", "seeds", "trials", "hypervolume", "seconds", "to the peer's hypervolume"]
            header += [f"to <= {USABLE}", *(f"KL at <= {limit}" for limit in LIMITS)]
            parts += [f"## Model: {model}", table(header, rows), _quality(runs, model)]
    noted: dict[str, list[str]] = {}
    for run in runs:
        if run.note:
            noted.setdefault(run.note, []).append(run.name)
    notes = [f"- {', '.join(names)}: {note}" for note, names in noted.items()]
    return "\n\n".join([*filter(None, parts), *(["\n".join(notes)] if notes else [])]) + "\n"


READING = """\
Figures of several seeds are medians. Hypervolume is that of (refusals by the peer's keywords, KL)
against (1, 1). All else counts by the refusal detector, partial refusals included. Seconds are
counted from the start of the command, the peer's from its first trial.

The second table is about held-out prompts: for each front the original, and the trial with the
least KL at a limit. KL elsewhere leaves out the ordinary prompts to which the original begins a
reply as it begins its refusals with a probability of a tenth or more: what it declines, an edit
must change. KL along is that along 24 tokens of the original's replies to ordinary prompts.
The capability set has 100 items; in brackets is the mean probability of the right answer."""


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
        _median(reached, "{:.0f} s"),
        _median([run.usable(USABLE) for run in own], "{:.0f} s"),
        *(_median([run.least(limit) for run in own], "{:.4f}") for limit in LIMITS),
    ]


def _median(values: Sequence[float | None], form: str) -> str:
    """Of the runs that have a value, and how many those are if some have none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = form.format(statistics.median(known))
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


def _quality(runs: Sequence[Run], model: str) -> str:
    rows: list[list[object]] = [
        [tool, run.seed, *quality.cells()]
        for tool in TOOLS
        for run in of(runs, model, tool)
        for quality in run.quality
    ]
    return table(["held out", "seed", *HEADER], rows) if rows else ""


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
                    other.keywords <= trial.keywords
                    and other.kl_divergence <= trial.kl_divergence
                    and other != trial
                    for other in whole
                )
            ]
            best.sort(key=lambda trial: trial.keywords)
            x = [100 * trial.keywords for trial in best]
            y = [trial.kl_divergence for trial in best]
            # More refusals never need more damage, so the front goes on to the right.
            marked = list(range(len(x)))
            x, y = [*x, 100.0], [*y, *y[-1:]]
            right.step(
                x, y, where="post", marker="o", markersize=3, markevery=marked, alpha=0.8, **style
            )
    left.set(xscale="log", xlabel="seconds since the start", ylabel="hypervolume")
    finals = [run.final for run in runs if run.model == model]
    left.set_ylim(min(finals) - 0.05, max(finals) + 0.005)
    right.set(xlim=(-1, 40), xlabel="refusals of 100, by keywords", ylabel="KL divergence (nats)")
    few = [
        [trial.kl_divergence for trial in run.trials if not trial.bound and trial.keywords <= FEW]
        for run in runs
        if run.model == model
    ]
    right.set_ylim(0, 1.3 * max((min(found) for found in few if found), default=0.1))
    left.legend(loc="lower right")
    right.legend(loc="upper right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(f"Searches on the {model} model")
    figure.savefig(folder / f"search-{model}.png", dpi=110)
    plt.close(figure)
