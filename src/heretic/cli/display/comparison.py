"""How two checkpoints differ, for the screen: tables that fit into 80 columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from heretic.cli.display.text import text_cells, title
from heretic.records.trial import Score

if TYPE_CHECKING:
    from heretic.compare.checkpoints import CheckpointComparison
    from heretic.compare.claims import Claim
    from heretic.compare.difference import TensorDifference

SHOWN = 12
"""Most groups of tensors in the table."""

_KINDS = {
    "ablation": "ablation",
    "low_rank": "low rank",
    "full_rank": "full rank",
    "vector": "vector",
    "rounding": "dtype alone",
    "not_finite": "NaN or infinity",
    "mixed": "mixed",
    "shape": "shape",
    "unreadable": "quantised",
}


def differences_table(found: CheckpointComparison) -> Table:
    """The tensors that differ, those of all layers in one row."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
    table.add_column("tensors (* is a layer or an expert)", overflow="fold", min_width=14)
    for name in ("n", "change", "rank"):
        table.add_column(name, justify="right", no_wrap=name != "change")
    table.add_column("norms")
    table.add_column("kind", min_width=len("infinity"))
    groups = list(_groups(found.differences).items())
    for (name, kind), rows in groups[:SHOWN]:
        table.add_row(*text_cells(name, len(rows), *_figures(rows), _KINDS.get(kind, kind)))
    if len(groups) > SHOWN:
        table.add_row(*text_cells(f"and {len(groups) - SHOWN} more kinds", "", "", "", "", ""))
    return table


def _groups(
    rows: Sequence[TensorDifference],
) -> Mapping[tuple[str, str], list[TensorDifference]]:
    groups: dict[tuple[str, str], list[TensorDifference]] = {}
    for row in rows:
        name = re.sub(r"(?<=\.)\d+(?=\.)", "*", row.name).removesuffix(".weight")
        groups.setdefault((name, row.kind), []).append(row)
    return groups


def _figures(rows: Sequence[TensorDifference]) -> tuple[str, str, str]:
    changes = [row.relative for row in rows if row.relative is not None]
    change = f"{_percent(min(changes))} to {_percent(max(changes))}" if changes else ""
    if len(rows) == 1 and changes:
        change = _percent(changes[0])
    ranks = sorted({row.rank for row in rows if row.rank})
    more = "+" if any(row.more for row in rows) else ""
    rank = "" if not ranks else f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
    if not ranks:
        return change, "", ""
    kept = [row.norms_kept for row in rows]
    norms = "kept" if all(kept) else "changed" if not any(kept) else "some kept"
    return change, rank + more, norms


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def sentences(found: CheckpointComparison) -> Iterator[str]:
    """What else differs, one line each."""
    for part in found.parts:
        yield f"{part.sentence()}."
    if found.files:
        yield f"Files: {'; '.join(file.sentence() for file in found.files)}."
    if not found.parts and not found.files:
        yield "No tensor was lost or added; tokenizer, template and configurations agree."


def claims_table(claims: Sequence[Claim], measured: Sequence[Score] | None) -> Table:
    """The figures of the judged model's card beside those measured.

    Args:
        measured: Scores of the judged model; None if it was not scored.
    """
    shown = {score.name: score.with_interval() for score in measured or ()}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("figure", "its card says", "measured here"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for claim in claims:
        here = shown.get(claim.name, "not measured")
        table.add_row(*text_cells(title(claim.name), claim.text, here))
    return table
