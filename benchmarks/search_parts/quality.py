"""What the models on a run's front say at length, on prompts that nothing saw."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.search_parts.capability import capability, items

from heretic.config.settings import Settings
from heretic.engine.opening import open_engine
from heretic.events import Silent
from heretic.model import teacher_forcing
from heretic.model.core import Model
from heretic.model.endings import EncodedItem, plain_endings
from heretic.pipeline.known import load_run
from heretic.prompts import Prompt
from heretic.records.plan import Plan
from heretic.records.selection import row_within
from heretic.records.trial import front
from heretic.refusals import classify
from heretic.runs.folder import RunFolder

SHORT, ALONG = 40, 24
OPENING = 3
"""Tokens that tell how a refusal begins; the first one may begin an answer too."""

NEAR = 0.1
"""Probability of beginning as the original's refusals do, from which on it may decline a prompt."""

HEADER = (
    "model",
    "of 100",
    "refused / partly / broken at 40",
    "at length",
    "KL",
    "KL elsewhere (prompts)",
    "KL along",
    "capability",
)


@dataclass(frozen=True, slots=True)
class Counts:
    """Replies to the bad prompts, by the refusal detector; evasions count as partly refused."""

    refused: int
    partly: int
    broken: int

    @property
    def declined(self) -> int:
        """Refused, or partly refused."""
        return self.refused + self.partly

    def __str__(self) -> str:
        """As in tables."""
        return f"{self.refused} / {self.partly} / {self.broken}"


@dataclass(frozen=True, slots=True)
class Quality:
    """One model on held-out prompts.

    Attributes:
        limit: Refusals of 100 in the search at which it has the least divergence; None of the
            original.
        trial: Its number; None of the original.
        short, long: Counts at 40 new tokens, and at `tokens`.
        first: KL divergence of the first token of a reply to a good prompt, mean in nats.
        along: The same, along 24 tokens of the original's replies.
        accuracy, certainty: On the capability set.
        elsewhere: As `first`, of those good prompts alone that the original is not near to
            declining (see `near_to_declining`): what it declines, an edit must change. None in
            records that are older.
        answered: How many good prompts those are.
    """

    limit: int | None
    trial: int | None
    tokens: int
    short: Counts
    long: Counts
    first: float
    along: float
    accuracy: float
    certainty: float
    elsewhere: float | None = None
    answered: int | None = None

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Quality:
        """Read what `dataclasses.asdict` made."""
        counts = {name: Counts(**record[name]) for name in ("short", "long")}
        return cls(**{**record, **counts})

    @property
    def name(self) -> str:
        """Of the model."""
        return "original" if self.trial is None else f"trial {self.trial}"

    def cells(self) -> list[str]:
        """A row of a table; see `HEADER`."""
        return [
            self.name,
            "" if self.limit is None else f"<= {self.limit}",
            str(self.short),
            str(self.long),
            f"{self.first:.4f}",
            "-" if self.elsewhere is None else f"{self.elsewhere:.4f} ({self.answered})",
            f"{self.along:.4f}",
            f"{100 * self.accuracy:.0f} ({self.certainty:.3f})",
        ]


def qualities(
    run: Path, bad: Path, good: Path, *, tokens: int, limits: Sequence[int]
) -> Iterator[tuple[Quality, dict[str, str]]]:
    """The original, and each trial that has the least divergence at a limit; with the replies.

    Args:
        run: A run folder.
        bad, good: Files of held-out prompts, one on a line.
        tokens: Of the long replies.
    """
    folder = RunFolder(run)
    manifest = folder.require_manifest()
    settings = Settings.restore(dict(manifest.settings))
    model, directions = load_run(settings, folder, manifest, Silent())
    prompts = [_texts(path, settings.system_prompt) for path in (bad, good)]
    ruler = _Ruler(model, prompts[0], prompts[1], tokens)
    yield ruler.quality(None, None, None, directions)
    rows, seen = front(folder.read_trials()), set()
    for limit in limits:
        found = row_within(rows, limit)
        trial = rows[found.row]
        if found.met and trial.number not in seen:
            seen.add(trial.number)
            yield ruler.quality(limit, trial.number, trial.plan, directions)


def reply_lines(quality: Quality, replies: Mapping[str, str]) -> str:
    """The replies of one model as JSON lines, for people to read."""
    rows = [
        {"model": quality.name, "prompt": prompt, "reply": reply}
        for prompt, reply in replies.items()
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _texts(path: Path, system: str | None) -> list[Prompt]:
    """A prompt for each line of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Prompt(line.strip(), system) for line in lines if line.strip()]


def near_to_declining(
    model: Model, prompts: Sequence[Prompt], openings: Iterable[tuple[int, ...]]
) -> torch.Tensor:
    """Whether a model as it acts now may decline each prompt, bool [prompts].

    Args:
        openings: Tokens with which its refusals begin, none of them the beginning of another.
    """
    endings = sorted(set(openings))
    if not endings:
        return torch.zeros(len(prompts), dtype=torch.bool)
    rows = model.encode_rows(prompts, OPENING)
    found = plain_endings(model, [EncodedItem(row, endings) for row in rows])
    return found.logprobs.logsumexp(dim=-1) >= math.log(NEAR)


class _Ruler:
    """Measures plans of one model on held-out prompts."""

    def __init__(
        self, model: Model, bad: Sequence[Prompt], good: Sequence[Prompt], tokens: int
    ) -> None:
        self._model, self._bad, self._good, self._tokens = model, bad, good, tokens
        self._reference = teacher_forcing.reference(model, good, ALONG)
        self._engine = open_engine(model, {"bad": bad}, replied={"bad"}, max_new_tokens=tokens)
        self._items = items()
        self._far = torch.ones(len(good), dtype=torch.bool)

    def quality(
        self, limit: int | None, trial: int | None, plan: Plan | None, directions: torch.Tensor
    ) -> tuple[Quality, dict[str, str]]:
        """The figures, and the long replies by prompt."""
        model = self._model
        edits = {} if plan is None else model.plan_edits(plan, directions)
        replies = [text or "" for text in self._engine.replies("bad", [edits])[0]]
        ids = model.tokenizer(replies, add_special_tokens=False).input_ids
        with nullcontext() if plan is None else model.edited(plan, directions):
            found = teacher_forcing.continuation(model, self._good, self._reference)
            known = capability(model, self._items)
        if plan is None:
            openings = self._openings(replies, ids)
            self._far = ~near_to_declining(model, self._good, openings)
        first = found.divergence[:, 0]
        quality = Quality(
            limit=limit,
            trial=trial,
            tokens=self._tokens,
            short=self._counts([model.decode(row[:SHORT]) for row in ids]),
            long=self._counts(replies),
            first=float(first.mean()),
            elsewhere=float(first[self._far].mean()),
            answered=int(self._far.sum()),
            along=float(found.divergence.nanmean()),
            accuracy=known.accuracy,
            certainty=known.certainty,
        )
        texts = [prompt.user for prompt in self._bad]
        return quality, dict(zip(texts, replies, strict=True))

    def _openings(
        self, replies: Sequence[str], ids: Sequence[Sequence[int]]
    ) -> set[tuple[int, ...]]:
        """How the replies that are refusals begin."""
        rows = zip(replies, ids, self._bad, strict=True)
        return {
            tuple(row[:OPENING])
            for text, row, prompt in rows
            if classify(text, prompt.user).label == "refusal"
        }

    def _counts(self, replies: Sequence[str]) -> Counts:
        pairs = zip(replies, self._bad, strict=True)
        labels = Counter(classify(reply, prompt.user).label for reply, prompt in pairs)
        partly = labels["partial"] + labels["evasion"]
        return Counts(labels["refusal"], partly, labels["degenerate"])
