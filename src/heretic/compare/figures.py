"""Whether the card and the other documents of an export tell the same figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from heretic.compare.findings import Finding
from heretic.export.code_files import read_table
from heretic.export.documents.base_card import front_matter
from heretic.export.documents.markdown import cell
from heretic.export.documents.reproduction import Reproduction
from heretic.export.files import CARD, PARAMETERS, REPRODUCTION
from heretic.records.trial import Score, words_of
from heretic.system.display import safe
from heretic.system.hub import display_name, is_local, repository_of

COLUMNS = ("base model", "this model")
"""Headings of the columns of a card's table of scores."""

OF = {COLUMNS[0]: "the base model", COLUMNS[1]: "this model"}


def figure_findings(folder: Path, recorded: Reproduction) -> list[Finding]:
    """Check that the card shows the figures of the reproduction file, and names the base."""
    path = folder / CARD
    if not path.is_file():
        return [Finding("figures", f"{CARD} is missing.")]
    text = path.read_text(encoding="utf-8", errors="replace")
    return [
        *_table_findings(text, recorded),
        *_parameter_findings(folder, recorded),
        *_base_findings(text, recorded),
    ]


def scores_table(card: str) -> dict[str, Mapping[str, str]]:
    """The first table of scores of a card: by score, its cells by heading; empty without one.

    Cards of earlier releases write "kl divergence".
    """
    heading: Sequence[str] = ()
    rows: dict[str, Mapping[str, str]] = {}
    for line in card.splitlines():
        if not line.startswith("|"):
            if rows:
                break
            heading = ()
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if COLUMNS[1] in cells:
            heading = cells
        elif heading and not set("".join(cells)) <= set("-: "):
            rows[words_of(cells[0])] = dict(zip(heading[1:], cells[1:], strict=False))
    return rows


def _table_findings(card: str, recorded: Reproduction) -> Iterator[Finding]:
    rows = scores_table(card)
    for column, scores in zip(COLUMNS, (recorded.before, recorded.after), strict=True):
        for score in scores:
            cells = rows.get(_cell(words_of(score.name)))
            if cells is None:
                yield Finding("figures", f"{CARD} does not show {score.name}.")
            elif not _shows(cells.get(column, ""), score):
                text = (
                    f"{CARD} says {score.name} {cells.get(column)!r} of {OF[column]}, "
                    f"{REPRODUCTION} {score.display!r}."
                )
                yield Finding("figures", text)
    scores = (*recorded.before, *recorded.after)
    known = {_cell(words_of(score.name)) for score in scores}
    for name in rows.keys() - known:
        yield Finding("figures", f"{CARD} shows {name}, which {REPRODUCTION} does not hold.")


def _cell(text: str) -> str:
    """A text as a cell of a card's table shows it."""
    return safe(cell(text))


def _shows(cell: str, score: Score) -> bool:
    """Whether a cell shows a score; its interval may be wider, after a choice among many trials."""
    figure = _cell(score.display)
    if score.interval is None:
        return cell == figure
    said, _, ends = cell.rpartition(" [")
    if said != figure:
        return False
    shown = re.fullmatch(r"(\S+), (\S+)\]", ends)
    recorded = re.fullmatch(r".* \[(\S+), (\S+)\]", score.with_interval())
    if shown is None or recorded is None:
        return False
    low, high = (float(end) for end in shown.groups())
    return low <= float(recorded[1]) and high >= float(recorded[2])


def _parameter_findings(folder: Path, recorded: Reproduction) -> Iterator[Finding]:
    data = read_table(folder / PARAMETERS)
    scores: Any = data.get("scores")
    after = scores.get("after") if isinstance(scores, dict) else None
    if after is not None and after != [score.to_dict() for score in recorded.after]:
        yield Finding("figures", f"{PARAMETERS} and {REPRODUCTION} hold different scores.")
    if data.get("plan") not in (None, recorded.plan.to_dict()):
        yield Finding("figures", f"{PARAMETERS} and {REPRODUCTION} hold different plans.")


def _base_findings(card: str, recorded: Reproduction) -> Iterator[Finding]:
    model = str(recorded.settings.get("model"))
    if safe(display_name(model)) not in card:
        yield Finding("figures", f"{CARD} does not name the base model {display_name(model)}.")
    named = front_matter(card).get("base_model")
    local = "model" in recorded.places or is_local(model)
    if named is not None and not local and named != repository_of(model):
        yield Finding("figures", f"{CARD} names {named} as the base, {REPRODUCTION} {model}.")
