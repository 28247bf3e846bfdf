"""Finds the layout of a model."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from heretic.architectures.resolver import text_config
from heretic.engine.layout import Kept, Layout
from heretic.model.generation import known_layers


def layout_of(model: Any, layers: int) -> Layout:
    """The layout of a transformers model with so many layers, as its configuration says."""
    config, known = text_config(model), known_layers(model)[:layers]
    kept = [_kept(layer) for layer in known]
    kinds = {type(layer) for layer in known}
    sliding = any(getattr(layer, "is_sliding", False) for layer in known)
    chunk = _size(config, "attention_chunk_size")
    return Layout(
        layers=(*kept, *[Kept()] * (layers - len(kept))),
        # transformers keeps layers with chunks as it does those with windows.
        window=_size(config, "sliding_window") if sliding and not chunk else None,
        chunk=chunk if sliding else None,
        alike=len(kinds) == 1 and not any(layer.states for layer in kept),
    )


def _kept(layer: object) -> Kept:
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return Kept()
    return Kept(isinstance(layer, CacheLayerMixin), layer.number_of_states)


def _size(config: Any, name: str) -> int | None:
    size = getattr(config, name, None)
    return size if isinstance(size, int) and size > 0 else None
