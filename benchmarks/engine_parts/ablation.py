"""Seconds per plan with each technique switched off in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from benchmarks.engine_parts.rates import synchronize
from benchmarks.engine_parts.setup import Bench, Kind

from heretic.engine.prefill import Techniques
from heretic.evaluator import Evaluator
from heretic.events import Silent
from heretic.records import Plan, Score, dominates, objectives
from heretic.scorers import Scorer
from heretic.scorers.keyword import KeywordRefusals


@dataclass(frozen=True, slots=True)
class Variant:
    """The engine with something switched off, or racing on.

    Attributes:
        label: What stands in the table.
        techniques: Those of the engine.
        verdicts: Whether a row leaves once its verdict is certain; at the end token it always does.
        racing: Whether plans that are certain to be dominated by known ones are given up.
    """

    label: str
    techniques: Techniques = field(default_factory=Techniques)
    verdicts: bool = True
    racing: bool = False


FULL = Variant("full engine")
NO_REFILL = Variant("no refill of free slots", Techniques(refill=False))
VARIANTS = (
    FULL,
    Variant("one plan at a time, the plain way", Techniques(share_batches=False)),
    Variant("prompts' head not shared", Techniques(share_head=False)),
    Variant("originals not reused", Techniques(reuse_originals=False)),
    NO_REFILL,
    Variant("verdicts do not end replies", verdicts=False),
    Variant("full engine, racing", racing=True),
)


SMALL_KL = 1e-3
"""Nats; where there is less, a relative difference says nothing."""


class NeverDecided(KeywordRefusals):
    """Refusals by keyword as they were, but every reply is made to its end."""

    def decided(self, response: str) -> bool:
        """Never."""
        return False


@dataclass(frozen=True, slots=True)
class Case:
    """What is evaluated in one call."""

    new_tokens: int
    kind: Kind
    plans: int


@dataclass(slots=True)
class Cell:
    """A variant in a case: seconds per plan, run by run, and the plans' scores."""

    case: Case
    variant: Variant
    seconds: list[float] = field(default_factory=list)
    scores: list[tuple[Score, ...]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds per plan."""
        return statistics.median(self.seconds)

    @property
    def given_up(self) -> int:
        """Plans whose evaluation was ended."""
        return sum(any(score.bound for score in row) for row in self.scores)


class Evaluators:
    """Evaluators of one reply length, one for each set of techniques, ready to be timed.

    On an accelerator none is kept, since each has a key/value cache of its own.
    """

    def __init__(self, bench: Bench, new_tokens: int) -> None:
        self._bench = bench
        self._settings = bench.settings.replaced(max_response_length=new_tokens)
        self._keep = bench.model.device.type == "cpu"
        self._made: dict[tuple[Techniques, bool], Evaluator] = {}

    def get(self, variant: Variant) -> Evaluator:
        """With the original's states recorded, so that what is done once is not timed."""
        key = variant.techniques, variant.verdicts
        if key in self._made:
            return self._made[key]
        self._release()
        bench = self._bench
        evaluator = Evaluator(
            self._settings,
            bench.model,
            bench.directions,
            Silent(),
            bench.prompts.evaluation,
            variant.techniques,
        )
        if bench.fixed_lengths or not variant.verdicts:
            evaluator.scorers = tuple(map(_undecided, evaluator.scorers))
        # Its own: in bfloat16, another way's rounding would show as divergence.
        _ = evaluator.baseline_outputs
        self._made[key] = evaluator
        return evaluator

    def _release(self) -> None:
        if self._keep:
            return
        self._made.clear()
        gc.collect()
        torch.accelerator.empty_cache()

    def rivals(self) -> list[tuple[float, ...]]:
        """The front of a few plans evaluated before."""
        rows = self.get(FULL).evaluate(self._bench.rival_plans())
        known = [objectives(row) for row in rows]
        return [one for one in known if not any(dominates(other, one) for other in known)]


def _undecided(scorer: Scorer) -> Scorer:
    if not isinstance(scorer, KeywordRefusals):
        return scorer
    return NeverDecided(scorer.settings, name=scorer.name, optimization=scorer.optimization)


def measure(
    bench: Bench,
    *,
    new_tokens: Sequence[int],
    plans: Sequence[int],
    rounds: int,
    minutes: float,
    say: Callable[[str], None],
) -> list[Cell]:
    """All variants in all cases, in turn, `rounds` times.

    Args:
        minutes: No round begins after so many, shared out among the lengths; 0 for no limit.
    """
    cells: list[Cell] = []
    deadline = time.perf_counter()
    kinds: tuple[Kind, ...] = ("fixed",) if bench.fixed_lengths else ("low", "high")
    for plan in [*bench.plans("low", max(plans)), *bench.rival_plans()]:
        bench.model.plan_edits(plan, bench.directions)  # norms of rows are computed once
    for length in new_tokens:
        evaluators = Evaluators(bench, length)
        racing = [] if bench.fixed_lengths else evaluators.rivals()
        cases = [Case(length, kind, count) for kind in kinds for count in plans]
        here = [Cell(case, variant) for case in cases for variant in _variants(bench, case)]
        deadline += 60 * minutes * length / sum(new_tokens)
        for number in range(rounds):
            if number and minutes and time.perf_counter() > deadline:
                break
            say(f"Ablation at {length} new tokens: round {number + 1} of {rounds}")
            for cell in _in_turn(here, number):
                _time(bench, evaluators.get(cell.variant), cell, racing)
        cells += here
    return cells


def _variants(bench: Bench, case: Case) -> list[Variant]:
    """Those that can make a difference in the case."""
    rows = case.plans * len(bench.prompts.evaluation.bad)
    found = [v for v in VARIANTS if v is not NO_REFILL or rows > bench.model.batch_size]
    if bench.fixed_lengths:
        found = [v for v in found if v.verdicts and not v.racing]
    return found


def _in_turn(cells: Sequence[Cell], number: int) -> Iterator[Cell]:
    """Case by case, the variants of each beginning with another one every round."""
    cases = dict.fromkeys(cell.case for cell in cells)
    for case in cases:
        same = [cell for cell in cells if cell.case == case]
        first = number % len(same)
        yield from [*same[first:], *same[:first]]


def _time(
    bench: Bench, evaluator: Evaluator, cell: Cell, rivals: Sequence[tuple[float, ...]]
) -> None:
    plans = bench.plans(cell.case.kind, cell.case.plans)
    seconds, cell.scores = timed(bench, evaluator, plans, rivals if cell.variant.racing else None)
    cell.seconds.append(seconds)


def timed(
    bench: Bench,
    evaluator: Evaluator,
    plans: Sequence[Plan],
    rivals: Sequence[tuple[float, ...]] | None = None,
) -> tuple[float, list[tuple[Score, ...]]]:
    """Seconds per plan of one call, and the plans' scores; see `Evaluator.evaluate`."""
    synchronize(bench.model.device)
    start = time.perf_counter()
    scores = evaluator.evaluate(plans, rivals)
    synchronize(bench.model.device)
    return (time.perf_counter() - start) / len(plans), scores


def ratios(cell: Cell, full: Cell) -> float:
    """How many times as long as the full engine, the median over rounds of the rounds' ratios."""
    pairs = zip(cell.seconds, full.seconds, strict=True)
    return statistics.median(mine / whole for mine, whole in pairs)


def differences(cell: Cell, full: Cell) -> tuple[float, float]:
    """Largest differences from the full engine's scores: rate of refusals, and KL relative."""
    rate = kl = 0.0
    for mine, whole in zip(cell.scores, full.scores, strict=True):
        for one, other in zip(mine, whole, strict=True):
            apart = abs(one.value - other.value)
            if one.bound:
                continue
            if one.name == "refusals":
                rate = max(rate, apart)
            elif other.value > SMALL_KL:
                kl = max(kl, apart / other.value)
    return rate, kl
