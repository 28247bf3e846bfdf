"""What `heretic doctor` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from heretic.cli.display.text import make_console, text_cells
from heretic.doctor.examination import Examination
from heretic.doctor.finding import Finding
from heretic.doctor.fit import Fit
from heretic.system.display import safe

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
NARROW = 75
"""Columns below which a model's formats are lines of their own."""


def show(found: Examination) -> None:
    """Print what was found, and what would fit."""
    console = make_console()
    console.print(_findings(found.findings))
    console.print()
    if found.device is not None:
        _show_fits(console, found)
    problems = sum(finding.state == "problem" for finding in found.findings)
    if problems:
        things = "1 thing" if problems == 1 else f"{problems} things"
        console.print(Text(f"{things} will fail.", style="bold red"))
    else:
        console.print(Text("Nothing was found that will fail.", style="green"))


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


def _show_fits(console: Console, found: Examination) -> None:
    assert found.device is not None
    bound = "about" if found.device.is_cpu else "at least"
    console.print(Text(safe(f"What would fit on {found.device.name}:"), style="bold"))
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    formats = list(dict.fromkeys(fit.format for fit in found.fits))
    narrow = console.width < NARROW
    table.add_column("model")
    if narrow:
        table.add_column("format")
    for name in ["rows; a trial, a search"] if narrow else formats:
        table.add_column(name, justify="right", overflow="fold")
    for model in dict.fromkeys(fit.model for fit in found.fits):
        row = [fit for fit in found.fits if fit.model == model]
        if narrow:
            for number, fit in enumerate(row):
                table.add_row(*text_cells("" if number else model, fit.format, _cell(fit)))
        else:
            table.add_row(*text_cells(model, *map(_cell, row)))
    console.print(table)
    console.print()
    for line in _legend(found.basis, bound):
        console.print(Text(safe(line), style="dim"))
    console.print()


def _legend(basis: Sequence[str], bound: str) -> list[str]:
    cells = (
        "Each cell: replies that are decoded together, then how long a trial and a whole search "
        f"take ({bound}); - where the memory is too small. `heretic inspect MODEL` says the "
        "memory for one model."
    )
    return [cells, *basis]


def _cell(fit: Fit) -> str:
    if not fit.fits:
        return "-"
    if fit.trial is None or fit.search is None:
        return str(fit.need.rows)
    return f"{fit.need.rows}; {rough(fit.trial)}, {rough(fit.search)}"


def rough(seconds: float) -> str:
    """A duration that is known roughly, in its largest unit, e.g. `20 s`, `3 h`, `2 days`."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1g} s"
