"""What was measured, as Markdown and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.engine_parts.ablation import (
    FULL,
    VARIANTS,
    Case,
    Cell,
    Variant,
    differences,
    ratios,
)
from benchmarks.engine_parts.decode import Decoding
from benchmarks.engine_parts.memory import Memory

REPLIES = {"low": "few refusals", "high": "most refuse", "fixed": "fixed length"}
MEMORY_TARGET, DECODE_TARGET = 1.15, 0.7


@dataclass(slots=True)
class Found:
    """All that one run of the benchmark found, and how it was made."""

    command: str
    machine: str
    setting: Mapping[str, Any]
    ablation: list[Cell] = field(default_factory=list)
    decoding: list[Decoding] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    warnings: Sequence[str] = ()


def markdown(found: Found) -> str:
    """All of it as text."""
    setting = ", ".join(f"{name} {value}" for name, value in found.setting.items())
    lines = ["# The engine", "", f"Machine: {found.machine}.", f"Setting: {setting}.", ""]
    lines += ["Made by:", "", f"    {found.command}", ""]
    lines += [f"Warning: {text}\n" for text in found.warnings]
    if found.ablation:
        lines += _ablation(found.ablation)
    if found.decoding:
        lines += _decoding(found.decoding)
    if found.memory:
        lines += _memory(found.memory)
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return [*(f"| {' | '.join(map(str, line))} |" for line in lines), ""]


# --- ablation ------------------------------------------------------------------------------


def _ablation(cells: Sequence[Cell]) -> list[str]:
    lines = [
        "## Ablation",
        "",
        "Seconds per plan, median of the runs, which took turns; in brackets",
    ]
    lines += [
        "the time relative to the full engine's in the same round, median. `x N`: plans in one"
    ]
    lines += ["call.", ""]
    by_case = {(cell.case, cell.variant.label): cell for cell in cells}
    variants = _variants(cells)
    for new_tokens in dict.fromkeys(cell.case.new_tokens for cell in cells):
        cases = [
            c for c in dict.fromkeys(cell.case for cell in cells) if c.new_tokens == new_tokens
        ]
        runs = len(by_case[cases[0], FULL.label].seconds)
        header = [
            f"{new_tokens} new tokens, runs: {runs}",
            *(f"{REPLIES[c.kind]}, x {c.plans}" for c in cases),
        ]
        rows = [[v.label, *(_cell(by_case, case, v) for case in cases)] for v in variants]
        lines += table(header, rows)
    return [*lines, *_spread(cells), *_agreement(cells)]


def _variants(cells: Sequence[Cell]) -> list[Variant]:
    """Those that were measured, in the order of the tables."""
    measured = {cell.variant for cell in cells}
    return [variant for variant in VARIANTS if variant in measured]


def _cell(by_case: Mapping[tuple[Case, str], Cell], case: Case, variant: Variant) -> str:
    cell = by_case.get((case, variant.label))
    if cell is None:
        return "no difference"
    return f"{cell.median:.2f} ({ratios(cell, by_case[case, FULL.label]):.2f})"


def _spread(cells: Sequence[Cell]) -> list[str]:
    """How far runs of the same thing lie apart."""
    repeated = [cell for cell in cells if len(cell.seconds) > 1]
    if not repeated:
        return []
    spreads = [(max(cell.seconds) - min(cell.seconds)) / cell.median for cell in repeated]
    middle, most = statistics.median(spreads), max(spreads)
    return [f"Slowest less fastest run over the median: {middle:.0%}, at most {most:.0%}.", ""]


def _agreement(cells: Sequence[Cell]) -> list[str]:
    """Whether all variants see the same scores."""
    full = {cell.case: cell for cell in cells if cell.variant == FULL}
    rows = []
    for variant in _variants(cells):
        same = [cell for cell in cells if cell.variant == variant]
        apart = [differences(cell, full[cell.case]) for cell in same]
        rate, kl = (max(values) for values in zip(*apart, strict=True))
        ended = f"{sum(c.given_up for c in same)} of {sum(len(c.scores) for c in same)}"
        if variant != FULL:
            rows.append([variant.label, f"{rate:.0%}", f"{kl:.1%}", ended])
    header = ["largest difference from the full engine", "refusals", "KL, relative", "given up"]
    seen = [
        f"- {c.new_tokens} new tokens, {REPLIES[c.kind]}: {_scores(full[c])}" for c in _most(full)
    ]
    return [*table(header, rows), "Scores by the full engine:", "", *seen, ""]


def _most(full: Mapping[Case, Cell]) -> Iterator[Case]:
    """The cases of the most plans."""
    most = max(case.plans for case in full)
    return (case for case in full if case.plans == most)


def _scores(cell: Cell) -> str:
    return "; ".join(", ".join(f"{s.name} {s.display}" for s in row) for row in cell.scores)


# --- decoding and memory -------------------------------------------------------------------


def _decoding(decodings: Sequence[Decoding]) -> list[str]:
    rounds = len(decodings[0].rates)
    limits = list(decodings[0].limits)
    header = ["decoding", "rows", "tokens/s"]
    for limit in limits:
        header += [f"limit by {limit}", "reached"]
    rows = []
    for one in decodings:
        cells: list[object] = [one.rows, f"{one.median:.0f}"]
        for limit in limits:
            middle = statistics.median(one.limits[limit])
            cells += [f"{middle:.0f}", f"{one.share(limit):.0%}"]
        rows.append([_decoded(one), *cells])
    lines = [
        "## Decoding",
        "",
        "Slots full (as many as the plans share evenly), no end tokens, without prefill; median of",
    ]
    lines += [
        f"{rounds} run(s). Target where memory bandwidth is the limit: {DECODE_TARGET:.0%}.",
        "",
    ]
    return [*lines, *table(header, rows)]


def _decoded(one: Decoding) -> str:
    names = {0: "the model as it is", 1: "one plan"}
    return f"{names.get(one.plans, f'{one.plans} plans')}, {one.engine}"


def _memory(memories: Sequence[Memory]) -> list[str]:
    rows = [
        [
            f"{one.new_tokens} new tokens, {one.plans} plans",
            one.rows,
            one.slots,
            one.columns,
            f"{one.implied / 1e9:.3f}",
            f"{one.peak / 1e9:.3f}",
            f"{one.ratio:.2f}",
        ]
        for one in memories
    ]
    header = ["memory", "rows", "slots", "columns", "cache implied, GB", "peak, GB", "ratio"]
    lines = [
        "## Memory",
        "",
        "Peak beyond what the loaded model takes, against the key/value cache",
    ]
    lines += [f"that the settings imply. Target: {MEMORY_TARGET} at most.", ""]
    return [*lines, *table(header, rows)]


# --- JSON ----------------------------------------------------------------------------------


def as_data(found: Found) -> dict[str, Any]:
    """All of it, run by run, ready for JSON."""
    return {
        "command": found.command,
        "machine": found.machine,
        "setting": dict(found.setting),
        "warnings": list(found.warnings),
        "ablation": [
            {
                **asdict(cell.case),
                "variant": cell.variant.label,
                "seconds_per_plan": cell.seconds,
                "scores": [[asdict(score) for score in row] for row in cell.scores],
            }
            for cell in found.ablation
        ],
        "decoding": [asdict(one) for one in found.decoding],
        "memory": [asdict(one) for one in found.memory],
    }
