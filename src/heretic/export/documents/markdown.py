"""Markdown tables."""

from __future__ import annotations


def table(heading: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is aligned left, and the others right."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell(text) for text in cells) + " |\n"

    rule = "| --- |" + " ---: |" * (len(heading) - 1) + "\n"
    return line(heading) + rule + "".join(line(row) for row in rows)


def cell(text: str) -> str:
    """A text as a cell shows it: in one line, with its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")
