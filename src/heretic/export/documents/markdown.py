"""Markdown tables."""

from __future__ import annotations


def table(heading: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is aligned left, and the others right."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |\n"

    rule = "| --- |" + " ---: |" * (len(heading) - 1) + "\n"
    return line(heading) + rule + "".join(line(row) for row in rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
