"""Chooses the engine for a model: the fast one, where it does what the model alone does."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from heretic.architectures.resolver import text_config
from heretic.engine.engine import Engine
from heretic.engine.plain import PlainEngine
from heretic.engine.prefill import Techniques
from heretic.errors import HereticError, is_of_interruption
from heretic.model import capture
from heretic.model.endings import EncodedItem, encode_items
from heretic.model.generation import carries_states, known_layers, without_known_cache
from heretic.prompts import Item, Prompt

if TYPE_CHECKING:
    from heretic.model.core import Model
    from heretic.model.reading import Prompts

_log = logging.getLogger(__name__)

CHECKED_PROMPTS = 2
"""Number of prompts of each set on which the engine is checked: the longest and the shortest."""


def open_engine(
    model: Model,
    prompts: Mapping[str, Prompts],
    *,
    replied: Collection[str],
    max_new_tokens: int,
    techniques: Techniques | None = None,
    items: Mapping[str, Sequence[Item]] | None = None,
) -> Engine | PlainEngine:
    """An engine that works with this model; see `Engine` for the arguments.

    Models differ in what their forward accepts, so the fast way is tried on a few prompts. If it
    fails, or differs from the plain way, the plain way is used and a notice gives the reason.
    """
    encoded = {name: encode_items(model, rows) for name, rows in (items or {}).items()}
    plain = PlainEngine(model, prompts, max_new_tokens=max_new_tokens, items=encoded)
    if techniques is not None and not techniques.share_batches:
        return plain
    reason = without_known_cache(model.model)
    if reason is not None:
        model.say(f"Plans are evaluated one by one, which is slower with this model: {reason}")
        return plain
    for name in replied:  # raises what would look like a failure of the engine below
        model.encode_rows(prompts[name], max_new_tokens)
    make = partial(Engine, model, replied=replied, techniques=techniques)
    reason = _unshared(model, make, prompts, max_new_tokens)
    if reason:  # layers may hand on more than what starting at a later one brings
        every = replace(techniques or Techniques(), reuse_originals=False)
        make = partial(make, techniques=every)
        problem = _unshared(model, make, prompts, max_new_tokens)
        if problem:
            model.say(f"Plans are evaluated one by one, which is slower: {problem}")
            return plain
        model.say(f"Every plan runs all layers, which is slower: {reason}")

    reason = _unpacked(model, make, encoded) if encoded else ""
    if reason:
        model.say(f"The endings of items are read one by one, which is slower: {reason}")
    return make(prompts, max_new_tokens=max_new_tokens, items=encoded, packs=not reason)


def _unshared(
    model: Model, make: Callable[..., Engine], prompts: Mapping[str, Prompts], max_new_tokens: int
) -> str:
    """Why plans cannot share batches; empty if they can."""

    def whole() -> Engine:
        return make(prompts, max_new_tokens=max_new_tokens)

    def few(window: int | None) -> Engine:
        """A small one; each set is checked to its second token, and with starts at later layers."""
        some = {name: _ends(model, rows) for name, rows in prompts.items()}
        if window is not None:
            some = {name: [*rows, _beyond(model, rows[-1], window)] for name, rows in some.items()}
        return make(some, replied=set(some), max_new_tokens=2, kept_share=math.inf)

    return _unfit(model, whole, few)


def _unpacked(
    model: Model, make: Callable[..., Engine], encoded: Mapping[str, Sequence[EncodedItem]]
) -> str:
    """Why all endings of an item cannot be read in one row; empty if they can."""
    if carries_states(model.model):
        return "layers would carry states from one ending into the next"

    def whole() -> Engine:
        return make({}, max_new_tokens=0, items=encoded)

    def few(window: int | None) -> Engine:
        some = {name: _few_items(rows) for name, rows in encoded.items()}
        return make({}, max_new_tokens=0, items=some, kept_share=math.inf)

    return _unfit(model, whole, few)


def _unfit(model: Model, whole: Callable[[], Engine], few: Callable[[int | None], Engine]) -> str:
    """Why an engine does not do what the model alone does; empty if it does.

    Args:
        whole: Makes the engine.
        few: Makes one with few prompts, on which it is tried; with rows beyond a window if one is
            given, in tokens.
    """
    try:
        engine = whole()
        problem = _too_long(engine, model)
        if problem:
            return problem
        tried = few(engine.layout.window or engine.layout.chunk)
        deviation = max(map(tried.deviation, tried.sets), default=0.0)
        if deviation > capture.TOLERANCES[model.dtype.itemsize]:
            return f"shared batches change the model's output (KL {deviation:.1e} nats)"
    except HereticError:
        raise
    except Exception as error:  # a forward may fail in any way on masks it does not expect
        if is_of_interruption(error):
            raise
        _log.warning("The engine failed on %s", model.options.model, exc_info=True)
        return f"{type(error).__name__}: {error}"
    return ""


def _too_long(engine: Engine, model: Model) -> str:
    """Why rows may be longer than the engine can serve; empty if they are not."""
    config = text_config(model.model)
    names = ["window_size", "max_position_embeddings"]
    if not known_layers(model.model):
        names += ["sliding_window", "attention_chunk_size"]
    found = [getattr(config, name, None) for name in names]
    window = min((size for size in found if isinstance(size, int) and size > 0), default=math.inf)
    if engine.longest <= window:
        return ""
    return f"rows may exceed the model's window of {window} tokens"


def _few_items(items: Sequence[EncodedItem]) -> list[EncodedItem]:
    """The item with the most to pack, and the longest and the shortest one."""
    numbers = range(len(items))
    lengths = [len(item.packed) for item in items]
    chosen = {
        max(numbers, key=lambda i: lengths[i] - len(items[i].context)),
        max(numbers, key=lengths.__getitem__),
        min(numbers, key=lengths.__getitem__),
    }
    return [items[i] for i in sorted(chosen)]


def _ends(model: Model, prompts: Prompts) -> Prompts:
    """The longest and the shortest prompts."""
    ordered = sorted(prompts, key=lambda prompt: len(model.prompt_text(prompt)))
    return [*ordered[: CHECKED_PROMPTS // 2], *ordered[-(CHECKED_PROMPTS // 2) :]]


def _beyond(model: Model, prompt: str | Prompt, tokens: int) -> Prompt:
    """A prompt like this one that has more tokens."""
    longer = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
    while (missing := tokens + 1 - len(model.encode_rows([longer])[0])) > 0:
        longer = replace(longer, user=longer.user + " so" * max(1, missing // 4))
    return longer
