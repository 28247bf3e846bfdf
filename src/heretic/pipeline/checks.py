"""What can be checked before prompts and weights are loaded, at little cost."""

from __future__ import annotations

from typing import Any

from heretic.config.settings import Settings
from heretic.model.failures import model_errors
from heretic.model.loading import check_source, configuration, load_tokenizer, quiet, resolve_dtype
from heretic.model.reading import ModelOptions, renderer_of
from heretic.records.options import options_of
from heretic.system.hub import ask_for
from heretic.system.machine import accelerator


def check_model(settings: Settings, *, edited: bool = True) -> Any:
    """Check that the model is there, and that its configuration and its chat template can be used.

    Args:
        edited: Whether it is to be edited; other models may be adapters on quantised bases.

    Returns:
        Its tokenizer; None for a GGUF file, whose tokenizer takes long to read.

    Raises:
        ModelError: The model is missing, gated or damaged, or its template takes no prompt.
        SettingsError: It has no chat template of that name, or a dtype is not known.
    """
    options = options_of(ModelOptions, settings)
    for name in options.dtypes:
        resolve_dtype(name, accelerator())
    with model_errors(options.model):
        ask_for(options.model, options.model_commit)
    check_source(options, merged=edited)
    if options.is_gguf:
        return None
    with quiet(), model_errors(options.model, "configuration"):
        configuration(options)
    tokenizer = load_tokenizer(options)
    renderer_of(options, tokenizer)
    return tokenizer
