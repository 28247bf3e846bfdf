"""The memory that a search needs on a device, from the sizes of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from heretic.engine.prefill import KEPT_SHARE, TOKENS_ON_ACCELERATOR, TOKENS_ON_CPU
from heretic.engine.shapes import SCHEDULES
from heretic.model.room import ASSUMED_PROMPT_TOKENS, Sizes, batch_size, fitting_rows
from heretic.search.activations import ACTIVATION_FACTOR, MEMORY_SHARE
from heretic.search.fitting.fit import ROWS_AT_ONCE, ROWS_AT_ONCE_ON_CPU
from heretic.search.fitting.progress import DEFAULTS
from heretic.search.method import PLANS_AT_ONCE, PLANS_AT_ONCE_ON_CPU

PASS_FACTOR = 16
"""Numbers that a forward pass holds at once, per token and unit of the hidden size."""

PLACES, KEPT_LOGITS = 7, 4
"""Places of a text at which the fit predicts; logits, their logarithms, and gradients of both."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a search takes at most, each figure about.

    Attributes:
        rows: Replies that are decoded together.
        columns: Tokens of a prompt and its reply, as assumed.
        weights: All weights.
        cache: Keys and values of these rows.
        originals: States of the unedited model that are kept.
        working: The larger of a forward pass with its logits, and a step of the fit.
    """

    rows: int
    columns: int
    weights: int
    cache: int
    originals: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.originals + self.working

    def to_dict(self) -> dict[str, int]:
        """Plain data for `--json`."""
        return {**asdict(self), "total": self.total}


def needed(
    sizes: Sizes,
    total: int,
    *,
    on_cpu: bool,
    reply: int,
    prompt: int,
    prompts: int,
    most_rows: int,
    plans: int = 0,
) -> Need:
    """What a search takes on a device.

    Args:
        total: Bytes of the device.
        reply: New tokens of a reply.
        prompt: Tokens of a prompt.
        prompts: Bad evaluation prompts.
        most_rows: The setting `max_batch_size`.
        plans: The setting `plans_at_once`; 0 means the default.
    """
    plans = plans or (PLANS_AT_ONCE_ON_CPU if on_cpu else PLANS_AT_ONCE)
    fitting = fitting_rows(sizes, total, ASSUMED_PROMPT_TOKENS + reply)
    batch = batch_size(fitting, most_rows)
    rows = batch if on_cpu else max(batch, min(plans * batch, fitting))
    rows = min(rows, plans * prompts)
    columns = SCHEDULES["cpu" if on_cpu else "cuda"].spare_columns + prompt + reply
    cache = rows * columns * sizes.cache_per_token
    kept = int(KEPT_SHARE * cache)
    left = total - sizes.weights - cache - kept
    # Prompts of several plans share a pass where their replies share a step.
    passes = _of_pass(sizes, batch if on_cpu else rows, prompt, on_cpu)
    return Need(
        rows=rows,
        columns=columns,
        weights=sizes.weights,
        cache=cache,
        originals=kept,
        working=max(passes, _of_fit(sizes, total, left, prompt, on_cpu)),
    )


def _of_pass(sizes: Sizes, rows: int, prompt: int, on_cpu: bool) -> int:
    """A forward pass over prompts, and the logits after them, which are read in float32."""
    most = TOKENS_ON_CPU if on_cpu else TOKENS_ON_ACCELERATOR
    hidden = min(most, rows * prompt) * sizes.hidden * PASS_FACTOR * sizes.itemsize
    return hidden + rows * sizes.vocabulary * (sizes.itemsize + 4)


def _of_fit(sizes: Sizes, total: int, left: int, prompt: int, on_cpu: bool) -> int:
    """A step of the fit, which reads fewer texts at once until that fits into what is left."""
    rows = ROWS_AT_ONCE_ON_CPU if on_cpu else ROWS_AT_ONCE
    rows = min(rows, DEFAULTS.good + DEFAULTS.pushed)
    while rows > 1 and _of_texts(sizes, total, rows, prompt) > left:
        rows //= 2
    return _of_texts(sizes, total, rows, prompt)


def _of_texts(sizes: Sizes, total: int, rows: int, prompt: int) -> int:
    """What layers keep of so many texts for the backward pass, and predictions in float32."""
    tokens = rows * (prompt + DEFAULTS.kept_tokens)
    layer = int(ACTIVATION_FACTOR / 2 * tokens * sizes.hidden * sizes.itemsize)
    kept = layer * sizes.layers
    if kept >= MEMORY_SHARE * total:  # then layers keep their inputs only, see `lean`
        kept = layer + tokens * sizes.layers * sizes.hidden * sizes.itemsize
    return kept + rows * PLACES * sizes.vocabulary * 4 * KEPT_LOGITS
