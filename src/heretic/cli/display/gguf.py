"""What was made and measured of GGUF files, for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from heretic.cli.display.tables import Replies, before_after_table
from heretic.cli.display.text import text_cells, title
from heretic.gguf.documents import divergence_text, remarks
from heretic.gguf.results import Made, Results
from heretic.system.display import bytes_text, safe

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN = 160
"""Characters of a reply that are shown."""


def show(results: Results, destination: Path, console: Console) -> None:
    """Print the files with their scores, what did not survive, and a few replies."""
    console.print()
    for part in shown(results, destination):
        console.print(part, crop=False)


def shown(results: Results, destination: Path) -> list[RenderableType]:
    """The files with their scores, what did not survive, and a few replies."""
    parts: list[RenderableType] = [files_table(results, destination), ""]
    told = (divergence_text(results), *results.survival())
    parts += [Text(safe(text)) for text in told]
    parts += [Text(safe(text), style="dim") for text in remarks(results)]
    last = results.files[-1]
    rows = [
        Replies(prompt, before, after)
        for prompt, before, after in zip(
            results.shown, results.shown_replies, last.replies, strict=True
        )
    ]
    labels = ("before conversion", last.kind)
    table = before_after_table(rows, heading="Replies", labels=labels, limit=SHOWN)
    return [*parts, "", table]


def files_table(results: Results, destination: Path) -> Table:
    """One row for each file: size and scores, beside those before quantisation."""
    table = Table(
        title=Text(safe(f"Saved in {destination}"), style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    table.add_column("")
    names = [score.name for score in results.unquantised.scores]
    for name in ("size", *map(title, names)):
        table.add_column(name, justify="right")
    if results.original_scores:
        known = {score.name: score.display for score in results.original_scores}
        table.add_row(*text_cells("original", "", *(known.get(name, "-") for name in names)))
    unquantised = results.unquantised
    if unquantised.kind not in {made.kind for made in results.files}:
        table.add_row(*text_cells(f"{unquantised.kind}, as saved", "", *_figures(unquantised)))
    for made in results.files:
        table.add_row(*text_cells(made.kind, bytes_text(made.size), *_figures(made)))
    return table


def _figures(made: Made) -> Sequence[str]:
    return [score.with_interval() for score in made.scores]
