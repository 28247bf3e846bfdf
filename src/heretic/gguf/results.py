"""What was made and measured of GGUF files, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heretic.records.statistics import paired
from heretic.records.trial import Score, ends_text, words_of

RESULTS = "gguf.json"
"""File with these results beside the GGUF files."""

RESULTS_SCHEMA = 1

ADAPTER = "lora"
"""The type of a file that holds an adapter."""


@dataclass(frozen=True, slots=True)
class Made:
    """A GGUF file, and its scores as llama.cpp runs it.

    Attributes:
        kind: Its type, such as `q4_k_m`.
        file: Its name; empty for one that was made for comparison only.
        size: Bytes.
        sha256: Hex digest.
        importance: Whether it was quantised with an importance matrix.
        fallbacks: Number of matrices with another type than the file's, by that type, since their
            rows are no multiple of its block.
        without_importance: Matrices that the importance matrix says nothing of.
        scores: KL divergence is that from the original in the same type, or see
            `Results.against_original`.
        rounding: Mean first-token KL(unquantised || this file) on the good prompts, in nats, of the
            edited model; None of the unquantised one.
        replies: To `Results.shown`.
    """

    kind: str
    file: str
    size: int
    sha256: str
    importance: bool
    fallbacks: Mapping[str, int]
    without_importance: tuple[str, ...]
    scores: tuple[Score, ...]
    rounding: float | None
    replies: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "type": self.kind,
            "file": self.file,
            "size": self.size,
            "sha256": self.sha256,
            "importance_matrix": self.importance,
            "fallbacks": dict(self.fallbacks),
            "without_importance": list(self.without_importance),
            "scores": [score.to_dict() for score in self.scores],
            "kl_from_unquantised": self.rounding,
            "replies": list(self.replies),
        }


@dataclass(frozen=True, slots=True)
class Results:
    """What was made of one model.

    Attributes:
        name: The model's, as in the names of the files.
        original: The original's, as it may be published; None if there was none.
        tokens: Most new tokens of a reply.
        original_scores: Scores of the original that were recorded with the model, or none.
        unquantised: The edited model in the type of its weights.
        files: The others, in the order in which they were asked for.
        conversion: Mean first-token KL(folder in PyTorch || unquantised file in llama.cpp), in
            nats, on the good prompts, or where there is an original on the first of them.
        shown: Prompts whose replies are shown.
        shown_replies: The edited model's, unquantised, in PyTorch.
        originals: Names of the original's files that were kept.
        not_scored: Names of scorers that cannot score a GGUF file.
        versions: Of the packages that carry llama.cpp, by their names.
    """

    name: str
    original: str | None
    tokens: int
    original_scores: tuple[Score, ...]
    unquantised: Made
    files: tuple[Made, ...]
    conversion: float
    shown: tuple[str, ...]
    shown_replies: tuple[str, ...]
    originals: tuple[str, ...]
    not_scored: tuple[str, ...]
    versions: Mapping[str, str]

    @property
    def against_original(self) -> bool:
        """Whether divergences are from the original in the same type.

        If not, they are from the unquantised folder as PyTorch runs it.
        """
        return self.original is not None

    @property
    def smallest(self) -> Made:
        """The smallest of the files."""
        return min(self.files, key=lambda made: made.size)

    @property
    def is_adapter(self) -> bool:
        """Whether the file is an adapter, which another file is run with."""
        return [made.kind for made in self.files] == [ADAPTER]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "schema_version": RESULTS_SCHEMA,
            "name": self.name,
            "original": self.original,
            "kl_divergence_from": "original in the same type"
            if self.against_original
            else "the unquantised folder",
            "max_response_length": self.tokens,
            "original_scores": [score.to_dict() for score in self.original_scores],
            "unquantised": self.unquantised.to_dict(),
            "files": [made.to_dict() for made in self.files],
            "conversion_kl": self.conversion,
            "prompts": list(self.shown),
            "replies_before_conversion": list(self.shown_replies),
            "originals": list(self.originals),
            "not_scored": list(self.not_scored),
            "survival": self.survival(),
            "versions": dict(self.versions),
        }

    def survival(self) -> list[str]:
        """What of the edit does not survive quantisation, a sentence for each type and score."""
        before = {score.name: score for score in self.unquantised.scores}
        quantised = [made for made in self.files if made.kind != self.unquantised.kind]
        found = [
            text
            for made in quantised
            for score in made.scores
            if (text := _lost(made, before.get(score.name), score)) is not None
        ]
        if quantised and not found:
            kinds = " and ".join(made.kind for made in quantised)
            text = f"The edit survives in {kinds}: no score is worse than unquantised by more than"
            found = [f"{text} chance explains (95%)."]
        return found


def _lost(made: Made, before: Score | None, after: Score) -> str | None:
    """A sentence if a score is worse than before quantisation, from prompt to prompt."""
    if before is None or after.optimization == "none":
        return None
    test = paired(before.values, after.values)
    sign = 1 if after.optimization == "minimize" else -1
    if test is None or not test.tells_apart or sign * test.difference <= 0:
        return None
    name = words_of(after.name)
    what = "a part of the edit does not survive" if after.is_count else "the edit does more damage"
    was, now = (score.short for score in (before, after))
    return (
        f"In {made.kind} {what}: {name} is {now}, unquantised {was} "
        f"({test.difference:+.3g} [{ends_text(test.interval)}])."
    )


def fallback_text(made: Made) -> str:
    """Which matrices have another type, in words; empty if none has."""
    parts = [f"{count} {kind.lower()}" for kind, count in sorted(made.fallbacks.items())]
    return ", ".join(parts)
