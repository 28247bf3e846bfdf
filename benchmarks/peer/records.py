"""What both tools are given, and what was seen of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

PEER = "heretic-llm==1.4.0"
MEASURED_PACKAGES = (PEER.partition("==")[0], "torch", "transformers")
"""Whose versions are told."""

PROMPTS = 100
"""Of each of the four sets."""

REFUSALS_WITHIN = 2
KL_WITHIN = 0.03

KEYWORD_SCORERS = ({"plugin": "keyword", "name": "refusals"}, {"plugin": "kl_divergence"})
"""What the peer counts by, in our settings."""

SETS = {
    "good_prompts": "ordinary_train",
    "bad_prompts": "topic_train",
    "good_evaluation_prompts": "ordinary_test",
    "bad_evaluation_prompts": "topic_test",
}
"""Setting, the same in both tools, to the demo's prompt file."""

WAYS = {"peer": "peer", "single": "one plan at a time", "together": "all plans in one call"}
"""What is timed; the first is the peer, the others are ways to call Heretic."""


@dataclass(frozen=True, slots=True)
class Case:
    """What both tools are given in one round."""

    model: str
    dtype: str
    new_tokens: int
    trials: int
    seed: int
    last_direction: str

    @property
    def title(self) -> str:
        """Dtype and length, as tables have it."""
        return f"{self.dtype}, {self.new_tokens}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one process did; lists have one entry per trial.

    Attributes:
        seconds: Of each trial; where all plans were scored in one call, that time divided by their
            number, once.
        refusals: Of `PROMPTS` prompts.
        kl_divergence: In nats.
        plans: In the form of `Plan.to_dict`.
        peak_bytes: High-water mark of the resident memory of the process.
        process_seconds: From its start to its end, loading included.
    """

    way: str
    seconds: list[float]
    refusals: list[int]
    kl_divergence: list[float]
    baseline_refusals: int
    plans: list[dict[str, Any]]
    batch_size: int
    device: str = ""
    peak_bytes: int = 0
    process_seconds: float = 0.0

    @property
    def per_trial(self) -> float:
        """Median seconds per trial."""
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of all ways on the same plans."""

    case: Case
    runs: dict[str, Measured]

    def ratio(self, way: str) -> float:
        """How many times longer the peer takes for a trial."""
        return self.runs["peer"].per_trial / self.runs[way].per_trial


@dataclass(frozen=True, slots=True)
class Comparison:
    """One plan as two tools saw it: the peer, and one way to call Heretic."""

    way: str
    title: str
    round_number: int
    trial: int
    refusals: tuple[int, int]
    kl_divergence: tuple[float, float]

    @property
    def kl_difference(self) -> float:
        """Relative to the peer's."""
        peer, mine = self.kl_divergence
        return abs(mine - peer) / peer if peer else float(mine != peer)

    @property
    def same(self) -> bool:
        """Whether both saw the same, within what rounding may change."""
        apart = abs(self.refusals[0] - self.refusals[1])
        return apart <= REFUSALS_WITHIN and self.kl_difference <= KL_WITHIN


def groups(rounds: Sequence[Round]) -> dict[str, list[Round]]:
    """Rounds of the same dtype and length, in order."""
    found: dict[str, list[Round]] = {}
    for one in rounds:
        found.setdefault(one.case.title, []).append(one)
    return found


def comparisons(rounds: Sequence[Round]) -> Iterator[Comparison]:
    """All plans of all rounds, in each way to call Heretic."""
    for number, one in enumerate(rounds, 1):
        peer = one.runs["peer"]
        for way, run in one.runs.items():
            if way == "peer":
                continue
            pairs = zip(
                zip(peer.refusals, run.refusals, strict=True),
                zip(peer.kl_divergence, run.kl_divergence, strict=True),
                strict=True,
            )
            for trial, (refusals, kl) in enumerate(pairs, 1):
                yield Comparison(way, one.case.title, number, trial, refusals, kl)
