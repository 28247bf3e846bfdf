"""Greedy decoding in which a row leaves the batch as soon as its reply is decided."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteriaList
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from heretic.architectures.table import UNCACHED
from heretic.errors import ModelError
from heretic.model.capture import forward_arguments
from heretic.model.choice import most_likely
from heretic.model.failures import reason
from heretic.system.documents import read_json

TOKENS = (
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id"),
)
"""Settings of a generation config that any way of generating needs."""

SAMPLING = (
    *TOKENS,
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff", "repetition_penalty", "no_repeat_ngram_size"),
    *("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens"),
    *("renormalize_logits", "remove_invalid_values", "stop_strings"),
)
"""Settings of a generation config that a streamed reply follows. Others cannot be streamed (beams,
several replies), need what is not there (a helping model, hours of compiling) or end it early."""

Decide = Callable[[Sequence[list[int]]], Sequence[bool]]
"""Maps new token ids of the live rows to whether each row needs no further tokens."""

CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
"""What forwards call their cache."""


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a reply: the generation config's and the tokenizer's.

    Raises:
        ModelError: The generation config's are no token ids.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    wrong = [index for index in ids if index is not None and type(index) is not int]
    if wrong:
        raise ModelError(
            f"eos_token_id in the model's generation_config.json is {str(configured)[:80]}, no "
            "token id and no list of them.",
            remedy="Mend it there.",
        )
    return frozenset(index for index in [*ids, tokenizer.eos_token_id] if index is not None)


def own_generation_config(folder: Path | None) -> tuple[dict[str, Any], str | None]:
    """What replaces a generation config that transformers refuses, which would end the loading.

    Args:
        folder: The model's files, if they are on this machine.

    Returns:
        Arguments of `from_pretrained`, and what the user should know; nothing for a file that can
        be used, or none.

    Raises:
        ModelError: The file is not JSON.
    """
    file = None if folder is None else folder / "generation_config.json"
    if file is None or not file.is_file():
        return {}, None
    content = read_json(file, kind=ModelError, strict=False)
    why = _refused(content)
    if why is None:
        return {}, None
    known = content if isinstance(content, dict) else {}
    given = {name: known[name] for name in TOKENS if _are_ids(known.get(name))}
    # Only some of them may be lists.
    tokens = {name: ids for name, ids in given.items() if _refused({name: ids}) is None}
    return {"generation_config": GenerationConfig(**tokens)}, (
        f"generation_config.json cannot be used ({why}): of it, only the special tokens count"
    )


def _refused(content: Any) -> str | None:
    """Why transformers refuses the content of a generation config; None if it takes it."""
    try:
        GenerationConfig(**content)
    except Exception as error:  # the class checks all values, in many ways
        return reason(error).rstrip(".")
    return None


def _are_ids(value: Any) -> bool:
    ids = value if isinstance(value, list) else [value]
    return all(isinstance(index, int) and index >= 0 for index in ids)


@contextmanager
def following(model: Any, names: Sequence[str]) -> Iterator[Any]:
    """Let `model.generate` follow only these settings of the model's generation config.

    Yields:
        The configuration in force, which may be changed.
    """
    whole = model.generation_config
    given = {name: getattr(whole, name, None) for name in names}
    model.generation_config = GenerationConfig()
    for name, value in given.items():  # not through its constructor, which refuses some files
        setattr(model.generation_config, name, value)
    try:
        yield model.generation_config
    finally:
        model.generation_config = whole


@torch.inference_mode()
def greedy(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
    end: frozenset[int],
    decide: Decide | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Decode greedily from prompts padded on the left.

    Args:
        input_ids: int64 [rows, tokens], on the model's first device.
        attention_mask: The same shape; 0 on padding.
        end: Token ids that end a row; they are not part of the result.
        decide: Called after every step; rows that it decides leave the batch.
        on_step: Called after every step with (tokens just made, rows that have left so far).

    Returns:
        New token ids of each row, in the order of the input.
    """
    if without_plain_cache(model) is not None:
        return _by_generate(model, input_ids, attention_mask, max_new_tokens, end, decide, on_step)
    replies: list[list[int]] = [[] for _ in range(len(input_ids))]
    live = list(range(len(input_ids)))
    cache = DynamicCache(config=model.config)
    mask = attention_mask
    held: dict[str, Any] = {"use_cache": True, cache_argument(model) or "cache": cache}
    arguments = forward_arguments(model, mask)
    tokens = input_ids
    for _ in range(max_new_tokens):
        output = model(input_ids=tokens, **held, **arguments)
        chosen = most_likely(output.logits[:, -1])
        keep = _take_in(chosen.tolist(), live, replies, end)
        if decide is not None:
            decided = decide([replies[row] for row in live])
            keep = [alive and not done for alive, done in zip(keep, decided, strict=True)]
        if on_step is not None:
            on_step(len(live), len(replies) - sum(keep))
        if not any(keep):
            break
        if not all(keep):
            kept = torch.tensor([index for index, alive in enumerate(keep) if alive])
            live = [live[index] for index in kept.tolist()]
            chosen, mask = chosen[kept.to(chosen.device)], mask[kept.to(mask.device)]
            # Other states too; indices on the CPU, since layers may lie on several devices.
            cache.reorder_cache(cast("torch.LongTensor", kept))
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        tokens = chosen.unsqueeze(-1)
        arguments = forward_arguments(model, mask)
        if "position_ids" in arguments:
            arguments["position_ids"] = arguments["position_ids"][:, -1:]
    return replies


def cache_argument(model: Any) -> str | None:
    """What the model's forward calls its cache; None if it takes none.

    transformers renamed `past_key_values` to `cache` in 5.24. Code that comes with a model may use
    the old name under any release.
    """
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in accepted), None)


def without_plain_cache(model: Any) -> str | None:
    """Why decoding needs more than a cache of keys and values whose rows can be removed.

    None if it needs no more.
    """
    if getattr(model, "_is_stateful", False):
        return "it keeps other states than keys and values"
    return without_known_cache(model)


def without_known_cache(model: Any) -> str | None:
    """Why decoding needs more than a cache of keys and values, and of states that tokens carry on.

    None if it needs no more.
    """
    if _is_uncached(model):
        return "it reads the whole text at every step"
    if model.config.is_encoder_decoder:
        return "it has an encoder and a decoder"
    default = getattr(model, "_supports_default_dynamic_cache", lambda: False)
    stateful = getattr(model, "_is_stateful", False) and not carries_states(model)
    if stateful or not default():
        return "it keeps other states than keys and values"
    if cache_argument(model) is None:
        known = " or ".join(CACHE_ARGUMENTS)
        return (
            f"its forward takes no {known} in transformers {transformers.__version__} "
            f"({', '.join(inspect.signature(model.forward).parameters)})"
        )
    return None


def known_layers(model: Any) -> list[Any]:
    """The layers of the cache that transformers makes for a model; [] if it knows none."""
    try:
        return list(DynamicCache(config=model.config).layers)
    except (AttributeError, KeyError, TypeError, ValueError):  # no or unknown kinds of layers
        return []


def attending_layers(model: Any, count: int) -> list[int]:
    """0-based indices of the layers that keep keys and values, of `count` decoder layers.

    All of them where transformers does not know the model's kinds of layers.
    """
    known = known_layers(model)
    if len(known) != count:
        return list(range(count))
    return [index for index, layer in enumerate(known) if isinstance(layer, CacheLayerMixin)]


def carries_states(model: Any) -> bool:
    """Whether the model's cache holds states that tokens carry on, as recurrences do."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in known_layers(model))


@torch.inference_mode()
def carried_bytes(model: Any) -> int:
    """Bytes of the states that a row carries on besides keys and values, in all layers."""
    if without_known_cache(model) is not None or not carries_states(model):
        return 0
    cache = DynamicCache(config=model.config)
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    model(input_ids=ids, use_cache=True, **{str(cache_argument(model)): cache})
    states = [
        state
        for layer in cache.layers
        if isinstance(layer, LinearAttentionCacheLayerMixin)
        for state in (*layer.conv_states.values(), *layer.recurrent_states.values())
        if state is not None
    ]
    return sum(state.numel() * state.element_size() for state in states)


def _is_uncached(model: Any) -> bool:
    return getattr(model.config, "model_type", None) in UNCACHED


def _by_generate(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    end: frozenset[int],
    decide: Decide | None,
    on_step: Callable[[int, int], None] | None,
) -> list[list[int]]:
    """Like `greedy`, with transformers' own loop, for models without a plain cache.

    Decided rows stay in the batch until all rows are decided.
    """
    width = input_ids.shape[1]
    done = [False] * len(input_ids)

    def new(ids: Tensor) -> list[list[int]]:
        rows = ids[:, width:].tolist()
        return [row[: next((i for i, t in enumerate(row) if t in end), len(row))] for row in rows]

    def stop(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        rows, last = new(ids), ids[:, -1].tolist()
        decided = decide(rows) if decide is not None else [False] * len(rows)
        for row, (token, verdict) in enumerate(zip(last, decided, strict=True)):
            done[row] = done[row] or token in end or verdict
        if on_step is not None:
            on_step(len(rows), sum(done))
        return torch.tensor(done, device=ids.device)

    masked = "attention_mask" in inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {"attention_mask": attention_mask} if masked else {}
    if _is_uncached(model):
        arguments["use_cache"] = False
    with following(model, TOKENS):  # no penalties and no beams: as `greedy` decodes
        found = model.generate(
            input_ids=input_ids,
            **arguments,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=next(iter(end), 0),
            stopping_criteria=StoppingCriteriaList([stop]),
        )
    return new(found)


def _take_in(
    chosen: list[int], live: list[int], replies: list[list[int]], end: frozenset[int]
) -> list[bool]:
    """Append each chosen token to its reply; returns which rows did not choose an end token."""
    keep = []
    for row, token in zip(live, chosen, strict=True):
        ended = token in end
        if not ended:
            replies[row].append(token)
        keep.append(not ended)
    return keep
