"""The table of docs/memory.md: which models can be searched on which accelerators.

    python benchmarks/memory_table.py

Nothing is measured: the figures are those of `heretic inspect MODEL --memory GB`.
"""

from __future__ import annotations

from heretic.doctor.fit import MODELS
from heretic.search.need import needed

GIGABYTES = (8, 12, 16, 24, 48, 80)
BITS = {"": 0, "8 bits": 8, "4 bits": 4}
REPLY, PROMPT, PROMPTS, MOST_ROWS = 100, 256, 100, 128
HALF = 2


def cell(model: str, gigabytes: int) -> str:
    """How many replies are decoded together, and with which quantisation; `-` if nothing fits."""
    total = int(gigabytes * 1e9)
    for name, bits in BITS.items():
        sizes = MODELS[model].sizes(HALF, bits)
        need = needed(
            sizes,
            total,
            on_cpu=False,
            reply=REPLY,
            prompt=PROMPT,
            prompts=PROMPTS,
            most_rows=MOST_ROWS,
        )
        if need.total <= total:
            return f"{need.rows}, {name}" if name else str(need.rows)
    return "-"


def table() -> str:
    """Markdown: a row for each model, a column for each size of memory."""
    lines = [
        ["", *(f"{size} GB" for size in GIGABYTES)],
        ["---", *["---:"] * len(GIGABYTES)],
        *([model, *(cell(model, size) for size in GIGABYTES)] for model in MODELS),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
