"""What was found, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.peer.records import (
    KL_WITHIN,
    PROMPTS,
    REFUSALS_WITHIN,
    WAYS,
    Case,
    Measured,
    Round,
    comparisons,
    groups,
)

Tuning = Mapping[int, Mapping[int, Measured]]
"""New tokens to batch size to the peer's run with it."""

LAST_DIRECTIONS = {
    "peer": "after the final norm, as the peer's",
    "own": "each tool's own",
}

TARGET_RATIO = 8.0
"""On two processor cores, at full evaluation."""


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    middle = f"{statistics.median(values):.2f}"
    return f"{middle} ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else middle


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def time_table(rounds: Sequence[Round]) -> str:
    """Seconds per trial and ratios, round by round."""
    rows: list[list[object]] = []
    for number, one in enumerate(rounds, 1):
        for way, run in one.runs.items():
            ratio = "" if way == "peer" else f"{one.ratio(way):.1f}"
            peak = f"{run.peak_bytes / 1e9:.2f}"
            cells = [number, one.case.title, run.batch_size, spread(run.seconds), ratio, peak]
            rows.append([WAYS[way], *cells, f"{run.process_seconds:.0f}"])
    header = ["", "round", "dtype, new tokens", "batch", "s a trial", "peer / ours", "peak GB"]
    return table([*header, "whole s"], rows)


def summary_table(rounds: Sequence[Round]) -> str:
    """Medians over the rounds, one row for each dtype, length and way."""
    rows: list[list[object]] = []
    for title, same in groups(rounds).items():
        for way in same[0].runs:
            runs = [one.runs[way] for one in same]
            ratio = "" if way == "peer" else spread([one.ratio(way) for one in same])
            peak = f"{max(run.peak_bytes for run in runs) / 1e9:.2f}"
            seconds = spread([second for run in runs for second in run.seconds])
            rows.append([WAYS[way], title, seconds, ratio, peak])
    header = ["", "dtype, new tokens", "s a trial, median (range)", "peer / ours by round"]
    return table([*header, "peak GB"], rows)


def scores_table(rounds: Sequence[Round]) -> str:
    """What both saw, plan by plan."""
    rows = [
        [
            WAYS[one.way],
            one.title,
            one.round_number,
            one.trial,
            *one.refusals,
            *(f"{value:.4f}" for value in one.kl_divergence),
            f"{one.kl_difference:.1%}",
            "yes" if one.same else "NO",
        ]
        for one in comparisons(rounds)
    ]
    header = ["", "dtype, new tokens", "round", "trial", "refusals, peer", "ours", "KL, peer"]
    return table([*header, "ours", "KL apart", "same"], rows)


def verdict(rounds: Sequence[Round]) -> list[str]:
    """What the tables come to, for each dtype and length; times in the dtype that is timed."""
    lines = []
    for title, same in groups(rounds).items():
        is_timed = same[0].case.dtype == rounds[0].case.dtype
        found = [score_line(same), *(ratio_lines(same) if is_timed else [])]
        lines += [f"- {title}: {line}" for line in found]
    return lines


def score_line(rounds: Sequence[Round]) -> str:
    """Whether both tools saw the same."""
    plans = list(comparisons(rounds))
    same = sum(one.same for one in plans)
    refusals = max(abs(one.refusals[0] - one.refusals[1]) for one in plans)
    kl = max(one.kl_difference for one in plans)
    baselines = sorted({run.baseline_refusals for one in rounds for run in one.runs.values()})
    return (
        f"same scores (refusals within {REFUSALS_WITHIN} of {PROMPTS}, KL within {KL_WITHIN:.0%}) "
        f"in {same} of {len(plans)} comparisons; at most {refusals} refusals and {kl:.2%} in KL "
        f"apart; the unedited model refuses {', '.join(map(str, baselines))} of {PROMPTS}."
    )


def ratio_lines(rounds: Sequence[Round]) -> list[str]:
    """How much faster Heretic is, in each way to call it."""
    lines = []
    for way in rounds[0].runs:
        if way != "peer":
            ratio = statistics.median(one.ratio(way) for one in rounds)
            word = "met" if ratio >= TARGET_RATIO else "missed"
            lines.append(
                f"{WAYS[way]} {ratio:.1f} times faster than the peer (median of rounds: "
                f"{len(rounds)}); the target of {TARGET_RATIO:.0f} on two cores is {word}."
            )
    return lines


def machine() -> str:
    """The accelerator if there is one, the processor, and how many of its cores there are."""
    from heretic.system.machine import accelerator, device_name

    model, flags = platform.processor() or platform.machine(), ""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                model = value
            elif key == "flags":
                flags = value
    native = sorted(flag for flag in flags.split() if flag.endswith("_bf16"))
    cores = f"{model}, {os.cpu_count()} cores"
    device = accelerator()
    if device.type != "cpu":
        cores = f"{device_name(device)}, {cores}"
    return f"{cores}, {', '.join(native)}" if native else cores


def report(
    rounds: Sequence[Round],
    tuning: Tuning,
    versions: Mapping[str, Mapping[str, str]],
) -> str:
    """Everything as Markdown."""
    case, runs = rounds[0].case, rounds[0].runs
    devices = {run.device for run in runs.values() if run.device}
    command = f"python benchmarks/versus_peer.py {shlex.join(shown_arguments(sys.argv[1:]))}"
    setting = (
        f"Demo's planted model, {PROMPTS} + {PROMPTS} evaluation prompts, row "
        f"normalization `none`, {case.trials} random plans a round, seeds from {case.seed}, last "
        f"layer's direction: {LAST_DIRECTIONS[case.last_direction]}."
    )
    lines = [
        "# Heretic and its peer, trial by trial",
        "",
        f"Machine: {machine()}; device: {', '.join(sorted(devices))}. {setting}",
        "",
        *(f"{name}: {written(packages)}." for name, packages in versions.items()),
        "",
        "Made by:",
        "",
        f"    {command.rstrip()}",
        "",
        summary_table(rounds),
        "",
        *verdict(rounds),
        *tuning_lines(tuning, case),
        "",
        "Round by round (`whole s`: the process from start to end, loading included):",
        "",
        time_table(rounds),
        "",
        "Plan by plan:",
        "",
        scores_table(rounds),
    ]
    return "\n".join(lines) + "\n"


def written(packages: Mapping[str, str]) -> str:
    """Names and versions in a line."""
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def tuning_lines(tuning: Tuning, case: Case) -> list[str]:
    """How the peer's batch size was chosen, and how far the choice alone moves its scores."""
    lines = []
    for new_tokens, tried in tuning.items():
        if not tried:
            continue
        figures = ", ".join(f"{size}: {spread(run.seconds)} s" for size, run in tried.items())
        first, *others = tried.values()
        pairs = list(comparisons([Round(case, {"peer": first, "other": run}) for run in others]))
        kl = max(one.kl_difference for one in pairs)
        refusals = max(abs(one.refusals[0] - one.refusals[1]) for one in pairs)
        lines.append(
            f"- The peer's batch sizes at {new_tokens} new tokens, tried before: {figures}. "
            f"On the same plans the choice moves its own scores by up to {refusals} refusals and "
            f"{kl:.2%} in KL."
        )
    return lines


def shown_arguments(arguments: Sequence[str]) -> list[str]:
    """The command's arguments without those that name places on this machine."""
    shown: list[str] = []
    skip = False
    for argument in arguments:
        place = argument.startswith(("--peer-venv", "--output"))
        if not skip and not place:
            shown.append(argument)
        skip = place and "=" not in argument
    return shown


def write(
    output: Path,
    text: str,
    rounds: Sequence[Round],
    tuning: Tuning,
    versions: Mapping[str, Mapping[str, str]],
) -> None:
    """The table, and all that was measured as JSON next to it."""
    output.write_text(text, encoding="utf-8")
    rows = [asdict(one) for one in rounds]
    for row in rows:
        row["case"]["model"] = Path(row["case"]["model"]).name  # no place on this machine
    tried = {
        new_tokens: {size: asdict(run) for size, run in runs.items()}
        for new_tokens, runs in tuning.items()
    }
    data = {"machine": machine(), "versions": versions, "tuning": tried, "rounds": rows}
    content = json.dumps(data, indent=1) + "\n"
    output.with_suffix(".json").write_text(content, encoding="utf-8")
