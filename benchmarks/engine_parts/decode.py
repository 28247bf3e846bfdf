"""Decoding with all slots full, against what the machine could do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import torch
from benchmarks.engine_parts.rates import bandwidth, median_seconds, synchronize
from benchmarks.engine_parts.setup import Bench, encoded_lengths, without_end_tokens
from torch import nn

from heretic.engine.engine import Edits, Engine
from heretic.engine.opening import open_engine
from heretic.engine.plain import PlainEngine
from heretic.model import Model


@dataclass(slots=True)
class Decoding:
    """Tokens per second with the rows shared by so many plans (0: the model as it is).

    Attributes:
        step_bytes: What a step has to read: weights, and keys and values of all rows.
        rates: The engine's, run by run.
        limits: What the machine could reach, by the name of the limit, run by run.
    """

    plans: int
    rows: int
    engine: str
    step_bytes: float
    rates: list[float] = field(default_factory=list)
    limits: dict[str, list[float]] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Tokens per second."""
        return statistics.median(self.rates)

    def share(self, limit: str) -> float:
        """Part of the limit that is reached, the median over runs."""
        pairs = zip(self.rates, self.limits[limit], strict=True)
        return statistics.median(rate / ideal for rate, ideal in pairs)


class _Clock:
    """Times the steps after all rows have their first token, which prefill gives them."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._made = 0
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)

    def __call__(self, tokens: int, done: int, total: int) -> None:
        self._made += tokens
        self._last = time.perf_counter(), self._made
        if self._first is None and self._made >= self._rows:
            self._first = self._last

    @property
    def rate(self) -> float:
        """Tokens per second."""
        assert self._first is not None
        (start, before), (end, after) = self._first, self._last
        return (after - before) / (end - start)


def measure(
    bench: Bench, *, plans: Sequence[int], tokens: int, rounds: int, say: Callable[[str], None]
) -> list[Decoding]:
    """The engine and the limits, in turn, `rounds` times, at `tokens` tokens a reply."""
    slots = bench.model.batch_size
    found = []
    for number in range(rounds):
        for index, count in enumerate(plans):
            say(f"Decoding for {count} plans: round {number + 1} of {rounds}")
            rate, limits, setting = _once(bench, count, slots, tokens)
            if not number:
                found.append(Decoding(count, *setting))
            found[index].rates.append(rate)
            for name, value in limits.items():
                found[index].limits.setdefault(name, []).append(value)
    return found


@torch.inference_mode()
def _once(
    bench: Bench, count: int, slots: int, tokens: int
) -> tuple[float, dict[str, float], tuple[int, str, float]]:
    """Tokens per second, limits, and the setting: rows, kind of engine, bytes a step reads."""
    model = bench.model
    each = max(1, slots // max(1, count))
    prompts = list(islice(cycle(bench.prompts.evaluation.bad), each))
    edits: list[Edits] = [
        model.plan_edits(plan, bench.directions) for plan in bench.plans("low", count)
    ] or [{}]
    rows = each * len(edits)
    with without_end_tokens(model):
        engine = open_engine(model, {"bad": prompts}, replied={"bad"}, max_new_tokens=tokens)
        _replies(engine, edits, rows)  # records the original's states and warms up
        clock = _replies(engine, edits, rows)
    lengths = encoded_lengths(model, prompts)
    read = statistics.fmean(lengths) + tokens / 2
    kind = "shared batches" if isinstance(engine, Engine) else "plain"
    del engine
    moved = weight_bytes(model) + rows * read * model.cache_bytes_per_token()
    return clock.rate, _limits(model, rows, moved), (rows, kind, moved)


def _replies(engine: Engine | PlainEngine, edits: Sequence[Edits], rows: int) -> _Clock:
    clock = _Clock(rows)
    engine.replies("bad", edits, on_step=clock)
    return clock


def _limits(model: Model, rows: int, moved: float) -> dict[str, float]:
    """Tokens per second that the machine allows, by what holds them back.

    Args:
        moved: Bytes that a step has to read.
    """
    limits = {"matrix rate": rows / linear_seconds(model, rows)}
    if model.device.type == "cuda":
        limits["memory bandwidth"] = rows * bandwidth(model.device) / moved
    return limits


def linear_seconds(model: Model, rows: int) -> float:
    """One step's linear maps alone, the vocabulary's included, one token for each row."""
    maps = _linear_maps(model)
    inputs = {
        m.in_features: torch.randn(rows, 1, m.in_features, device=model.device, dtype=model.dtype)
        for m in maps
    }

    def work() -> None:
        for linear in maps:
            linear(inputs[linear.in_features])

    return median_seconds(work, lambda: synchronize(model.device))


def _linear_maps(model: Model) -> list[nn.Linear]:
    return [module for module in model.model.modules() if isinstance(module, nn.Linear)]


def weight_bytes(model: Model) -> int:
    """What a step reads of the weights: every linear map, tied ones once."""
    return sum(m.weight.numel() * m.weight.element_size() for m in _linear_maps(model))
