"""What the models on a run's front say at length, on prompts that nothing saw.

    python -m benchmarks.front_quality RUN --bad FILE --good FILE [--tokens 200] [--bounds 3 10 25]

For the original, and for the least divergence at each bound on the refusals of 100: refused, partly
refused and broken replies to the bad prompts, at 40 tokens and at `--tokens`; the divergence of the
first token, and along 24 tokens of the original's replies to the good prompts; and the capability
set. Prints a Markdown table; `--replies FILE` keeps the replies as JSON lines, to be read.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from benchmarks.search_parts.capability import capability, items

from heretic.config.settings import Settings
from heretic.engine.engine import open_engine
from heretic.events import Silent
from heretic.model import teacher_forcing
from heretic.model.core import Model
from heretic.pipeline.known import load_run
from heretic.prompts import Prompt
from heretic.records.plan import Plan
from heretic.records.selection import row_within
from heretic.records.trial import front
from heretic.refusals import classify
from heretic.runs.folder import RunFolder

SHORT, ALONG = 40, 24


def texts(path: Path, system: str | None) -> list[Prompt]:
    """A prompt for each line of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Prompt(line.strip(), system) for line in lines if line.strip()]


def counts(replies: Sequence[str], prompts: Sequence[Prompt]) -> str:
    """Refused / partly refused / broken."""
    labels = Counter(
        classify(reply, prompt.user).label for reply, prompt in zip(replies, prompts, strict=True)
    )
    return " / ".join(str(labels[name]) for name in ("refusal", "partial", "degenerate"))


def chosen(folder: RunFolder, bounds: Sequence[int]) -> Iterator[tuple[str, Plan | None]]:
    """The original, and the trials at the bounds; each trial once."""
    yield "original", None
    rows, seen = front(folder.read_trials()), set()
    for bound in bounds:
        trial = rows[row_within(rows, bound).row]
        if trial.number not in seen:
            seen.add(trial.number)
            scores = ", ".join(score.display for score in trial.scores)
            yield f"trial {trial.number} (at <= {bound}: {scores})", trial.plan


class Ruler:
    """Measures plans of one model on held-out prompts."""

    def __init__(
        self, model: Model, bad: Sequence[Prompt], good: Sequence[Prompt], tokens: int
    ) -> None:
        self._model, self._bad, self._good, self._tokens = model, bad, good, tokens
        self._reference = teacher_forcing.reference(model, good, ALONG)
        self._engine = open_engine(model, {"bad": bad}, replied={"bad"}, max_new_tokens=tokens)
        self._items = items()

    def row(self, name: str, plan: Plan | None, directions: torch.Tensor) -> tuple[str, list[str]]:
        """A line of the table, and the replies."""
        model = self._model
        edits = {} if plan is None else model.plan_edits(plan, directions)
        replies = [text or "" for text in self._engine.replies("bad", [edits])[0]]
        ids = model.tokenizer(replies, add_special_tokens=False).input_ids
        short = [model.decode(row[:SHORT]) for row in ids]
        with nullcontext() if plan is None else model.edited(plan, directions):
            found = teacher_forcing.continuation(model, self._good, self._reference)
            known = capability(model, self._items)
        first, along = found.divergence[:, 0].mean(), found.divergence.nanmean()
        cells = [
            name,
            counts(short, self._bad),
            counts(replies, self._bad),
            f"{first:.4f}",
            f"{along:.4f}",
            f"{100 * known.accuracy:.0f} ({known.certainty:.3f})",
        ]
        return "| " + " | ".join(cells) + " |", replies


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--bad", type=Path, required=True)
    parser.add_argument("--good", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--bounds", type=int, nargs="+", default=[3, 10, 25])
    parser.add_argument("--replies", type=Path)
    given = parser.parse_args()
    folder = RunFolder(given.run)
    manifest = folder.require_manifest()
    settings = Settings.restore(dict(manifest.settings))
    model, directions = load_run(settings, folder, manifest, Silent())
    prompts = [texts(path, settings.system_prompt) for path in (given.bad, given.good)]
    ruler = Ruler(model, prompts[0], prompts[1], given.tokens)
    long = f"at {given.tokens}"
    print(f"| model | at {SHORT} | {long} | KL first | KL along | capability |")
    print("| --- | --- | --- | --- | --- | --- |")
    kept = []
    for name, plan in chosen(folder, given.bounds):
        line, replies = ruler.row(name, plan, directions)
        print(line, flush=True)
        kept += [
            {"model": name, "prompt": prompt.user, "reply": reply}
            for prompt, reply in zip(prompts[0], replies, strict=True)
        ]
    if given.replies is not None:
        given.replies.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


if __name__ == "__main__":
    main()
