"""What can be done next, as commands that a shell takes as they stand."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from heretic.system.display import safe


def next_steps(steps: Sequence[tuple[str, Sequence[str]]]) -> Text:
    """A heading, and for each step what it does and its command.

    Args:
        steps: What a step does, and the arguments of its command after the program's name.
    """
    lines = ["What next?"]
    for what, arguments in steps:
        lines += [f"  {what}", f"    {shlex.join(['heretic', *arguments])}"]
    return Text(safe("\n".join(lines)), no_wrap=True, overflow="ignore")


def after_saving(
    directory: Path,
    model: str,
    run: tuple[Path, int] | None = None,
    *,
    whole: bool = False,
) -> list[tuple[str, list[str]]]:
    """What can be done with a model that has been saved.

    Args:
        model: The original.
        run: Run folder and row of the front, if the model comes from a search.
        whole: Whether it is a whole model, of which no GGUF files were made yet.
    """
    steps = [("Talk to the edited model:", ["chat", str(directory)])]
    made = ("Make files for llama.cpp, Ollama and LM Studio:", ["gguf", str(directory)])
    packed = [made] if whole else []
    if run is None:
        against = ["evaluate", str(directory), "--against", model]
        return [*steps, ("Compare it with the original:", against), *packed]
    chosen = [str(run[0]), "--trial-index", str(run[1])]
    return [
        *steps,
        ("Compare it with the original, by /compare:", ["chat", *chosen]),
        ("Read the run on one page:", ["report", str(run[0])]),
        *packed,
        ("Upload it:", ["export", *chosen, "--model-action", "upload"]),
    ]
