"""What `heretic doctor` prints."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from heretic.cli.display.text import make_console, text_cells
from heretic.doctor.examination import Examination
from heretic.doctor.finding import Finding
from heretic.doctor.fit import Fit, can_quantise
from heretic.doctor.room import Room
from heretic.pipeline.described import Device
from heretic.system.display import bytes_text, safe

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
NARROW = 75
"""Columns below which a model's formats are lines of their own."""


def show(found: Examination) -> None:
    """Print what was found, and what would fit."""
    console = make_console()
    console.print(_findings(found.findings))
    console.print()
    problems = sum(finding.state == "problem" for finding in found.findings)
    if problems:
        things = "1 thing" if problems == 1 else f"{problems} things"
        console.print(Text(f"{things} will fail.", style="bold red"))
    else:
        console.print(Text("Nothing was found that will fail.", style="green"))
    if found.device is not None and found.room is not None:
        console.print()
        _show_fits(console, found, found.device, found.room)


def _findings(findings: Iterable[Finding]) -> Table:
    """State, name, what was found and, on a line below, what to do."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        said = Text(safe(finding.found))
        if finding.remedy:
            said.append(f"\n{safe(finding.remedy)}", style="bold")
        state = Text(finding.state, style=STYLES[finding.state])
        table.add_row(state, Text(safe(finding.name)), said)
    return table


def _show_fits(console: Console, found: Examination, device: Device, room: Room) -> None:
    alone = f", one of {room.devices}" if room.devices > 1 else ""
    console.print(Text(safe(f"What would fit on {device.name}{alone}:"), style="bold"))
    for line in _legend("about" if device.is_cpu else "at least", room):
        console.print(Text(safe(line), style="dim"))
    console.print()
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    formats = list(dict.fromkeys(fit.format for fit in found.fits))
    narrow = console.width < NARROW
    table.add_column("model")
    if narrow:
        table.add_column("format")
    for name in ["rows; a trial, a search"] if narrow else map(_heading, formats):
        table.add_column(name, justify="right", overflow="fold")
    for model in dict.fromkeys(fit.model for fit in found.fits):
        row = [fit for fit in found.fits if fit.model == model]
        if narrow:
            for number, fit in enumerate(row):
                table.add_row(
                    *text_cells("" if number else model, _heading(fit.format), _cell(fit))
                )
        else:
            table.add_row(*text_cells(model, *map(_cell, row)))
    console.print(table)
    console.print()
    for line in found.basis:
        console.print(Text(safe(line), style="dim"))


def _legend(bound: str, room: Room) -> list[str]:
    usable, free = bytes_text(room.usable), bytes_text(room.free)
    cells = (
        "Each cell: how many replies are decoded together, how long a trial takes, and how long a "
        f"whole search ({bound})."
    )
    marks = (
        f"-: takes more than the {usable} that a search may count on. *: takes more than the "
        f"{free} that are free now. A smaller batch_size takes less."
    )
    lines = [
        cells,
        marks,
        "`heretic inspect MODEL` says the memory of one model.",
    ]
    if room.devices > 1:
        lines.append("A larger model may be spread over several accelerators (device_map).")
    if not can_quantise():
        lines.append("8 and 4 bits need the extra `quantization`, which is not installed.")
    return lines


def _heading(format_name: str) -> str:
    """A format, and whether what it needs is missing."""
    missing = format_name.endswith("bits") and not can_quantise()
    return f"{format_name}, not installed" if missing else format_name


def _cell(fit: Fit) -> str:
    if not fit.fits:
        return "-"
    mark = "" if fit.is_free else " *"
    if fit.trial is None or fit.search is None:
        return f"{fit.need.rows}{mark}"
    return f"{fit.need.rows}; {rough(fit.trial)}, {rough(fit.search)}{mark}"


def rough(seconds: float) -> str:
    """A duration that is known roughly, in its largest unit, e.g. `20 s`, `3 h`, `2 days`."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1g} s"
