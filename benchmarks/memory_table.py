"""The table of docs/memory.md: which models can be searched on which accelerators.

    python benchmarks/memory_table.py

Nothing is measured: the figures are those of `heretic inspect MODEL --memory GB`.
"""

from __future__ import annotations

from heretic.model.room import Sizes
from heretic.search.need import needed

GIGABYTES = (8, 12, 16, 24, 48, 80)
BITS = {"": 16, "8 bits": 8, "4 bits": 4}
REPLY, PROMPT, PROMPTS, MOST_ROWS = 100, 256, 100, 128
HALF = 2

# Parameters, those of the layers' linear maps, layers, width, vocabulary, numbers of a token's keys
# in one layer.
MODELS = {
    "Llama 3.2 1B": (1.24e9, 0.97e9, 16, 2048, 128256, 512),
    "Qwen3 4B": (4.02e9, 3.63e9, 36, 2560, 151936, 1024),
    "Qwen3 8B": (8.19e9, 6.95e9, 36, 4096, 151936, 1024),
    "Qwen3 14B": (14.77e9, 13.21e9, 40, 5120, 151936, 1024),
    "Qwen3 32B": (32.76e9, 31.21e9, 64, 5120, 151936, 1024),
    "Llama 3.3 70B": (70.55e9, 68.45e9, 80, 8192, 128256, 1024),
}
"""Dense models by name; from their configurations."""


def cell(model: str, gigabytes: int) -> str:
    """How many replies are decoded together, and with which quantisation; `-` if nothing fits."""
    parameters, linear, layers, hidden, vocabulary, keys = MODELS[model]
    total = int(gigabytes * 1e9)
    for name, bits in BITS.items():
        sizes = Sizes(
            weights=int((parameters - linear) * HALF + linear * bits / 8),
            layers=layers,
            hidden=hidden,
            vocabulary=vocabulary,
            cache_per_token=2 * HALF * keys * layers,
            itemsize=HALF,
        )
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
