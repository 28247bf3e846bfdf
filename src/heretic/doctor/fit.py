"""What would fit on this machine: models of usual sizes, by format, with rows and times.

The memory is that of `heretic inspect`, for shapes in place of a configuration. Times are
estimates from two rates that are measured here within a second: operations of a matrix product, and
bytes that a copy moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import TYPE_CHECKING, Any

from heretic.doctor.room import Room
from heretic.model.room import Shape
from heretic.pipeline.described import PROMPTS, Device, need_of_sizes
from heretic.search.need import Need

if TYPE_CHECKING:
    import torch

    from heretic.config.settings import Settings

PROMPT_TOKENS = 256
"""Tokens of a prompt for which memory is said, as `heretic inspect` assumes."""

COMPUTED_PROMPT_TOKENS = 17
"""Tokens of a prompt, of the demo's 37 with its template, that an evaluation computes: common
beginnings are computed once, and what lies below the edit is kept. Measured: 0.7 TFLOP for 200
prompts of a model of 135M (docs/lab-notes.md, 2026-11-24 Against the peer)."""

SHARE_OF_RATE = 0.65
"""What a trial reaches of the rate of a matrix product on a CPU: 2.9 of 4 to 5 s in bfloat16, and
8.6 of 13.1 s in float32 (the same entry)."""

FIRST_EDITS = 30
"""Trials' times that loading and the first edits take: 23 on a model of 0.5B, 50 on one of 135M
(docs/memory.md)."""

SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Load:
    """What a device is measured by.

    Attributes:
        square, rows: A matrix product of [rows, square] with [square, square].
        copied: Bytes of what is copied.
    """

    square: int
    rows: int
    copied: int


ON_CPU = Load(square=2048, rows=128, copied=8 << 20)
ON_ACCELERATOR = Load(square=8192, rows=4096, copied=256 << 20)
"""Long enough that starting it takes no time beside it, and more than a cache holds."""


MODELS = {
    "SmolLM2 135M": Shape(135_000_000, 106_000_000, 30, 576, 49152, 2 * 192 * 30),
    "Qwen3 0.6B": Shape(596_000_000, 440_000_000, 28, 1024, 151936, 2 * 1024 * 28),
    "Llama 3.2 1B": Shape(1_240_000_000, 970_000_000, 16, 2048, 128256, 2 * 512 * 16),
    "Qwen3 4B": Shape(4_020_000_000, 3_630_000_000, 36, 2560, 151936, 2 * 1024 * 36),
    "Qwen3 8B": Shape(8_190_000_000, 6_950_000_000, 36, 4096, 151936, 2 * 1024 * 36),
    "Qwen3 14B": Shape(14_770_000_000, 13_210_000_000, 40, 5120, 151936, 2 * 1024 * 40),
    "Qwen3 32B": Shape(32_760_000_000, 31_210_000_000, 64, 5120, 151936, 2 * 1024 * 64),
    "Llama 3.3 70B": Shape(70_550_000_000, 68_450_000_000, 80, 8192, 128256, 2 * 1024 * 80),
}
"""Dense models by name; from their configurations."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device was measured to do.

    Attributes:
        products: Operations a second of a matrix product.
        copies: Bytes a second that a copy reads and writes.
    """

    products: float
    copies: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a search of a model fits, in one format.

    Attributes:
        format: A dtype, `8 bits` or `4 bits`.
        need: Bytes that it takes, and rows that are decoded together.
        fits: Whether the device has as much that a search may count on.
        is_free: Whether as much is free now.
        trial, search: Seconds of a trial, and of a whole search; None where it does not fit, or
            where the rates are not known. None in 8 and 4 bits, too: what unpacking weights
            takes was not measured.
    """

    model: str
    format: str
    need: Need
    fits: bool
    is_free: bool
    trial: float | None
    search: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "model": self.model,
            "format": self.format,
            "fits": self.fits,
            "is_free": self.is_free,
            "rows": self.need.rows,
            "memory": self.need.to_dict(),
            "trial_seconds": self.trial,
            "search_seconds": self.search,
        }


def measure(device: torch.device, dtype: torch.dtype, seconds: float = SECONDS) -> Rates:
    """Measure a device's rates, each for about that long, after one product that does not count."""
    import torch

    load = ON_CPU if device.type == "cpu" else ON_ACCELERATOR
    weight = torch.randn(load.square, load.square, device=device, dtype=dtype)
    inputs = torch.randn(load.rows, load.square, device=device, dtype=dtype)
    products = _per_second(lambda: inputs @ weight, device, seconds)
    moved = torch.zeros(load.copied, device=device, dtype=torch.uint8)
    copies = _per_second(moved.clone, device, seconds)
    return Rates(products * 2 * load.rows * load.square**2, copies * 2 * load.copied)


def _per_second(work: Any, device: torch.device, seconds: float) -> float:
    """How often a second something can be done; the device is waited for."""
    _wait(work(), device)
    began, times, batch = perf_counter(), 0, 1
    while (passed := perf_counter() - began) < seconds:
        for _ in range(batch):
            result = work()
        _wait(result, device)
        times += batch
        batch = min(2 * batch, 256)
    return times / passed


def _wait(result: torch.Tensor, device: torch.device) -> None:
    if device.type != "cpu":
        result.flatten()[0].item()


def what_fits(
    settings: Settings, device: Device, room: Room, rates: Rates | None, dtype: str
) -> Iterator[Fit]:
    """Each model in each format: of the device's dtype, and quantised.

    Args:
        device: Its whole memory is what a search sizes its batches by.
        dtype: The name of the device's dtype.
    """
    for name, shape in MODELS.items():
        for format_name, bits in {dtype: 0, "8 bits": 8, "4 bits": 4}.items():
            need = need_of_sizes(
                shape.sizes(device.itemsize, bits), settings, device, PROMPT_TOKENS
            )
            fits = need.total <= room.usable
            trial = search = None
            if fits and rates is not None and not bits:
                reply = settings.max_response_length
                trial = trial_seconds(shape, need, rates, reply, on_cpu=device.is_cpu)
                search = trial * (settings.n_trials + FIRST_EDITS)
            yield Fit(name, format_name, need, fits, need.total <= room.free, trial, search)


def trial_seconds(shape: Shape, need: Need, rates: Rates, reply: int, *, on_cpu: bool) -> float:
    """Seconds of a trial whose replies all have full length, with the demo's prompts.

    Products take two operations for each weight and token. Decoding reads all weights at each step,
    for as many rows as are decoded together. The larger of the two is the bound. On a CPU a trial
    was measured to reach `SHARE_OF_RATE` of the first; on an accelerator none was timed yet, and
    the bound itself is returned.

    Args:
        reply: Tokens of a reply.
    """
    replies = 2 * shape.parameters * PROMPTS * reply
    prompts = 2 * shape.linear * 2 * PROMPTS * COMPUTED_PROMPT_TOKENS
    share = SHARE_OF_RATE if on_cpu else 1.0
    computing = (replies + prompts) / (rates.products * share)
    reading = need.weights * reply * PROMPTS / need.rows / rates.copies
    return max(computing, reading)


def basis(device: Device, rates: Rates | None, settings: Settings) -> Sequence[str]:
    """What the figures come from, in sentences."""
    if rates is None:
        return ("No times: the device could not be measured (its memory may be in use).",)
    measured = f"{rates.products / 1e9:,.0f} GFLOP/s of matrix products"
    copied = f"{rates.copies / 1e9:,.0f} GB/s copied, both measured now"
    what = (
        f"Times are estimates from {measured} and {copied}: "
        f"{PROMPTS} + {PROMPTS} prompts like the demo's, replies of "
        f"{settings.max_response_length} tokens, {settings.n_trials} trials."
    )
    errs = (
        "They may be wrong by a factor of two; trials that end early take less."
        if device.is_cpu
        else "They are lower bounds: no whole search was timed on an accelerator yet."
    )
    unpacking = "8 and 4 bits have no times: what unpacking their weights takes was not measured."
    return what, errs, unpacking


def can_quantise() -> bool:
    """Whether the extra `quantization` is here, which 8 and 4 bits need."""
    try:
        return bool(version("bitsandbytes"))
    except PackageNotFoundError:
        return False


def rates_dict(rates: Rates) -> dict[str, float]:
    """Plain data for `--json`."""
    return asdict(rates)
