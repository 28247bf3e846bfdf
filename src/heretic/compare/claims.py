"""The figures that a model card claims: tables, and sentences such as "Refusals: 3/100"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

NUMBER = r"\d+(?:[.,]\d+)?"
FIGURE = rf"{NUMBER}\s*(?:/|of|out of)\s*\d+|{NUMBER}\s*%|{NUMBER}(?:[eE]-?\d+)?"
NAMES = {
    "refusals": r"(?<!late[ _])(?:refusals?|refusal rate|refused)",
    "kl_divergence": r"(?:KL(?:[ _-]*(?:div(?:ergence|\.)?))?|Kullback-Leibler divergence)",
    "late_refusals": r"late[ _]refusals?",
    "broken_replies": r"broken[ _]replies",
    "capability": r"capability",
}
"""Scores of Heretic, and what cards call them."""

AFTER = re.compile(
    r"this model|abliterated|edited|modified|after|ours|decensored|uncensored", re.IGNORECASE
)
"""Words in the heading of the column that holds the figures of the edited model."""

LARGEST = 2**20
"""Characters of a card that are looked at."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure that a card claims.

    Attributes:
        name: The score, as `NAMES` has it.
        text: The figure as the card writes it.
        value: As a number; of shares, from 0 to 1.
    """

    name: str
    text: str
    value: float

    def to_dict(self) -> dict[str, object]:
        """JSON-ready form; see docs/compare.md."""
        return asdict(self)


def claims(folder: Path) -> list[Claim]:
    """The figures that the README.md of a folder claims for its model, one for each score."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    text = card.read_text(encoding="utf-8", errors="replace")[:LARGEST]
    found: dict[str, Claim] = {}
    for claim in (*_in_tables(text), *_in_sentences(text)):
        found.setdefault(claim.name, claim)
    return list(found.values())


def _in_tables(text: str) -> Iterator[Claim]:
    heading: list[str] | None = None
    for line in text.splitlines():
        if not line.lstrip().startswith("|"):
            heading = None
            continue
        cells = [cell.strip(" *_`") for cell in line.strip().strip("|").split("|")]
        if heading is None:
            heading = cells
            continue
        name = _name(cells[0])
        figures = [(title, cell) for title, cell in zip(heading, cells, strict=False)][1:]
        if name is None or not figures:
            continue
        ours = [cell for title, cell in figures if AFTER.search(title)]
        claim = _claim(name, (ours or [figures[0][1]])[0])
        if claim is not None:
            yield claim


def _in_sentences(text: str) -> Iterator[Claim]:
    for name, words in NAMES.items():
        found = re.search(
            rf"\b{words}\b[\s*_`|:=~≈-]{{1,12}}(?:of\s+)?({FIGURE})", text, re.IGNORECASE
        )
        claim = found and _claim(name, found[1])
        if claim:
            yield claim


def _name(cell: str) -> str | None:
    return next(
        (name for name, words in NAMES.items() if re.match(rf"\W*{words}\b", cell, re.IGNORECASE)),
        None,
    )


def _claim(name: str, cell: str) -> Claim | None:
    found = re.search(FIGURE, cell)
    if found is None:
        return None
    text = " ".join(found[0].split())
    parts = [float(part.replace(",", ".")) for part in re.findall(NUMBER + r"(?:[eE]-?\d+)?", text)]
    if len(parts) > 1:
        return Claim(name, text, parts[0] / parts[1]) if parts[1] else None
    return Claim(name, text, parts[0] / 100 if text.endswith("%") else parts[0])
