"""What was measured, as Markdown and as JSON. Standard library only."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from textwrap import fill
from typing import Any

from benchmarks.gpu_parts.needs import Need
from benchmarks.gpu_parts.records import STATES, Row, Section
from benchmarks.peer.report import table

WIDTH = 99
"""Of lines of text."""

LEFT_OUT = "-"
"""In a cell whose figure is only to be had on a GPU, was not reached, or means nothing."""


@dataclass(slots=True)
class Found:
    """All that one run of the benchmark found, and how it was made.

    Attributes:
        budget: Seconds that it was given.
        size: A key of `benchmarks.gpu_parts.sizes.SIZES`.
    """

    command: str
    size: str
    budget: float
    needs: Sequence[Need] = ()
    sections: list[Section] = field(default_factory=list)

    def rows(self, name: str) -> list[Row]:
        """The rows of a table, from all sections."""
        return [row for section in self.sections for row in section.tables.get(name, ())]


def markdown(found: Found) -> str:
    """All of it as text; tables are at most 100 columns wide."""
    lines = ["# On an accelerator", ""]
    if found.size == "tiny":
        lines += [
            "A try of the script with tiny models: the figures say nothing of any machine.",
            "",
        ]
    lines += ["Made by:", "", f"    {found.command}", ""]
    for title, text, make in TABLES:
        made = make(found)
        if made:
            lines += [f"## {title}", "", *([text] if text else []), made, ""]
    lines += _notes(found)
    return "\n".join(lines)


# --- tables, in the order of the report ----------------------------------------------------


def _sections(found: Found) -> str:
    rows = [
        [one.name, STATES.get(one.state, "running"), f"{one.seconds:.0f}"] for one in found.sections
    ]
    return table(["section", "state", "seconds"], rows)


def _needs(found: Found) -> str:
    """What is there in a paragraph, and a line for each package that is not, or does not fit."""
    here = [f"{need.name} {need.found}" for need in found.needs if need.found is not None]
    lines = [fill(", ".join(here) + ".", WIDTH)] if here else []
    return "\n".join([*lines, *(f"- {need.line}" for need in found.needs if not need.fits)])


def _device(found: Found) -> str:
    rows = [[row["what"], _figure(row["figure"]), row["unit"]] for row in found.rows("device")]
    return _table(["", "figure", "unit"], rows)


def _models(found: Found) -> str:
    names = Names(found)
    rows = [
        [
            names[row],
            row["model"],
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['weights_bytes'] / 1e9:.2f}",
            row["dtype"],
            row["slots"],
            f"{row['open_seconds']:.1f}",
        ]
        for row in found.rows("models")
    ]
    header = ["", "model", "million", "GB", "dtype", "slots", "opened in s"]
    return _table(header, rows)


def _trials(found: Found) -> str:
    names = Names(found)
    rows = [
        [
            names[row],
            row["new_tokens"],
            row["plans"],
            _median(row["seconds_a_trial"]),
            _seconds(row["first_call"]),
            LEFT_OUT if row["fixed_lengths"] else _percent(row["refusals"]),
            f"{row['cache_bytes'] / 1e9:.2f}",
            f"{row['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in row else LEFT_OUT,
        ]
        for row in found.rows("trials")
    ]
    header = ["", "tokens", "plans", "s a trial", "first call", "refused", "cache GB", "peak GB"]
    return _table(header, rows)


def _decoding(found: Found) -> str:
    names = Names(found)
    rows = []
    for row in found.rows("decoding"):
        rate = statistics.median(row["rates"])
        reading = row["step_bytes"] / row["bandwidth"]
        rows.append(
            [
                names[row],
                row["plans"],
                row["rows"],
                f"{rate:.0f}",
                _milli(row["step_seconds"]),
                _milli(reading),
                f"{reading / row['step_seconds']:.0%}",
                _milli(row["matrix_seconds"]),
                row["engine"],
            ]
        )
    header = ["", "plans", "rows", "tokens/s", "step ms", "reading ms", "reached", "matrices ms"]
    return _table([*header, "engine"], rows)


def _steps(found: Found) -> str:
    names = Names(found)
    whole = {(row["model"], row["plans"]): row["step_seconds"] for row in found.rows("decoding")}
    rows = [
        [
            names[row],
            row["plans"],
            row["rows"],
            f"{row['launches']:.0f}",
            f"{row['graphs']:.1f}",
            f"{row['kernels']:.0f}",
            _milli(row["busy_seconds"]),
            f"{whole[row['model'], row['plans']] / row['busy_seconds']:.2f}",
        ]
        for row in found.rows("steps")
        if row["busy_seconds"] > 0
    ]
    header = ["", "plans", "rows", "launches", "graphs", "kernels", "busy ms", "step / busy"]
    return _table(header, rows)


def _training(found: Found) -> str:
    rows = [
        [row["steps"], f"{row['seconds']:.0f}", f"{row['right']:.0%}", f"{row['loss']:.2f}"]
        for row in found.rows("training")
    ]
    return _table(["steps", "seconds", "prompts that begin right", "loss"], rows)


def _startup(found: Found) -> str:
    rows = [
        [row["stage"], f"{row['begins']:.1f}", f"{row['seconds']:.1f}"]
        for row in found.rows("startup")
    ]
    return _table(["stage", "begins at s", "seconds"], rows)


def _search(found: Found) -> str:
    rows = found.rows("search")[-1:]
    cells = [
        [
            f"{row['trials']} of {row['wanted']}",
            f"{row['first_trial']:.1f}",
            f"{row['seconds']:.1f}",
            row["ended"] or "still running when it was cut short",
        ]
        for row in rows
    ]
    return _table(["trials", "first at s", "all at s", "ended by"], cells)


def _peer(found: Found) -> str:
    """The ratio is that of our quickest trials: those with the most plans in one call."""
    ours = {
        _case(row): statistics.median(row["seconds_a_trial"])
        for row in sorted(found.rows("trials"), key=lambda row: float(row["plans"]))
        if row["seconds_a_trial"]
    }
    names, rows = Names(found), []
    for row in found.rows("peer"):
        mine = ours.get(_case(row))
        ratio = f"{row['median'] / mine:.1f}" if mine else LEFT_OUT
        seconds = _median(row["seconds_a_trial"])
        rows.append([names[row], row["new_tokens"], seconds, f"{row['whole_seconds']:.0f}", ratio])
    return _table(["", "tokens", "s a trial", "whole s", "peer / ours"], rows)


def _case(row: Row) -> tuple[str, int, int]:
    """What must agree for two times to be compared."""
    return row["model"], row["new_tokens"], row["prompts"]


ABOUT_TRIALS = """\
Seconds a trial: median of the timed calls, after a first one. Cache: keys and values of all rows.
Peak: memory beyond the weights, the largest so far at this length.
"""
ABOUT_DECODING = """\
A row for each prompt and plan, no end tokens, without prefill. Reading: weights, keys and values
once, at the bandwidth of a copy; reached: its share of a step. Matrices: the linear maps alone.
"""
ABOUT_STEPS = """\
Of one step, by torch's profiler. Busy: the sum of its kernels' times, which a replay of one graph
of them takes at least. Step / busy: 1.3 or less is wanted.
"""

Table = tuple[str, str, Callable[[Found], str]]
TABLES: Sequence[Table] = (
    ("Sections", "", _sections),
    ("Packages", "", _needs),
    ("Device", "", _device),
    ("Models", "", _models),
    ("Trials", ABOUT_TRIALS, _trials),
    ("Decoding", ABOUT_DECODING, _decoding),
    ("Steps", ABOUT_STEPS, _steps),
    ("Training of the stand-in", "", _training),
    ("Start-up", "Of the command of the whole search, from its start.\n", _startup),
    ("Whole search, `auto`", "Seconds from the start of the command.\n", _search),
    ("Peer", "", _peer),
)


def _notes(found: Found) -> list[str]:
    texts = dict.fromkeys(row["text"] for row in found.rows("notes"))
    notes = [fill(f"- {text}", WIDTH, subsequent_indent="  ") for text in texts]
    return ["## Notes", "", *notes, ""] if texts else []


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Empty text where there are no rows."""
    return table(header, rows) if rows else ""


# --- cells ---------------------------------------------------------------------------------


class Names:
    """Short names of models in tables: a letter each, in the order of the table of models."""

    def __init__(self, found: Found) -> None:
        names = dict.fromkeys(row["model"] for row in found.rows("models"))
        self._letters: dict[str, str] = dict(zip(names, "ABCDEF", strict=False))

    def __getitem__(self, row: Row) -> str:
        name: str = row["model"]
        return self._letters.get(name, name)


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _median(values: Sequence[float]) -> str:
    return _seconds(statistics.median(values)) if values else LEFT_OUT


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _milli(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _percent(values: Iterable[float]) -> str:
    """Smallest to largest share."""
    low, high = min(values := list(values)), max(values)
    return f"{low:.0%}" if low == high else f"{low:.0%}-{high:.0%}"


def as_data(found: Found) -> Mapping[str, Any]:
    """All of it, ready for JSON."""
    return {
        "command": found.command,
        "size": found.size,
        "budget_seconds": found.budget,
        "needs": [asdict(need) for need in found.needs],
        "sections": [asdict(section) for section in found.sections],
    }
