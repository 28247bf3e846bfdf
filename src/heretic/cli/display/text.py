"""Text for the screen: without control codes, names, durations, sizes; and the console."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from heretic.cli.signals import somebody_is_there
from heretic.records.trial import words_of
from heretic.system.display import bytes_text, safe


class _Console(Console):
    """A console that shows no control characters and no secrets, whoever prints to it."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of what is printed; those that control the terminal are rich's own."""
        for segment in super().render(renderable, options):
            shown = segment.control is not None
            yield segment if shown else Segment(safe(segment.text), segment.style)


def make_console(*, to_error: bool = False) -> Console:
    """The console on standard output; without a terminal it never writes an ANSI code.

    Environment variables that claim colour (`FORCE_COLOR`) do not make a file a terminal. What the
    output's encoding cannot express is replaced, because a reply must never end the program.

    Args:
        to_error: Whether it is on standard error instead.
    """
    stream = sys.stderr if to_error else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    if stream.isatty():
        return _Console(highlight=False, stderr=to_error)
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdigit() else 0
    return _Console(
        highlight=False, force_terminal=False, no_color=True, width=width or 120, stderr=to_error
    )


def is_interactive() -> bool:
    """Whether questions can be asked: input and output are a terminal, and somebody sits there."""
    terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    return terminal and somebody_is_there()


def title(name: str) -> str:
    """A score's or stage's name as people read it: `kl_divergence` -> `KL divergence`."""
    return words_of(safe(name))


def longest_word(heading: str) -> int:
    """Characters that a column must have for its heading to be wrapped at spaces alone."""
    return max(map(len, heading.split()), default=0)


def text_cells(*values: object) -> list[Text]:
    """Cells of a table as plain text, so that nothing in them is read as markup."""
    return [Text(safe(str(value))) for value in values]


def print_command(console: Console, heading: str, command: str) -> None:
    """Print a command below its heading, on a line of its own that a shell takes as it stands."""
    console.print(Text(heading), soft_wrap=True)
    console.print(Text(safe(f"  {command}")), soft_wrap=True)


def consecutive(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers, grouped into runs without a gap."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def memory_text() -> str:
    """Memory of this process and, if CUDA is in use, of the accelerators; "" if unknown.

    Torch is never imported for this: it is only asked if it is loaded already.
    """
    parts = []
    resident = _resident_bytes()
    if resident:
        parts.append(f"memory {bytes_text(resident)}")
    reserved = _accelerator_bytes()
    if reserved:
        parts.append(f"GPU {bytes_text(reserved)}")
    return " · ".join(parts)


def _resident_bytes() -> int | None:
    """Resident bytes of this process now, or the peak where only that is known."""
    try:
        import psutil
    except ImportError:
        return _peak_resident_bytes()
    return int(psutil.Process().memory_info().rss)


def _peak_resident_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _accelerator_bytes() -> int:
    """Bytes that torch's allocator holds on all CUDA (or ROCm) devices; 0 if none is in use."""
    torch: Any = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return 0
    return sum(int(cuda.memory_reserved(device)) for device in range(cuda.device_count()))
