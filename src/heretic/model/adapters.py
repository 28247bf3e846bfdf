"""Adapters on their base models: merged where the result is edited, attached where it only replies.

PEFT gives an adapter that does not fit its base no error, only a warning: what the files lack keeps
its start values, which change nothing. Such an adapter is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from heretic.errors import ModelError, SettingsError
from heretic.model.completeness import summary
from heretic.system.adapters import Adapter, find_adapter
from heretic.system.files import expanded
from heretic.system.hub import is_local

TASKS = ("", "CAUSAL_LM", "SEQ_2_SEQ_LM")
"""Tasks of adapters of language models; empty where the configuration names none."""

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")


def check_adapter(adapter: Adapter, quantization: str) -> None:
    """Refuse an adapter that cannot be merged, before its base is loaded.

    Raises:
        ModelError: It is not one of a language model, cannot be merged into weights at all, or its
            base is an adapter as well.
        SettingsError: Its base is to be quantised.
    """
    if adapter.task not in TASKS:
        raise ModelError(
            f"{adapter.place} is an adapter for another task ({adapter.task}).",
            remedy="Give a model that writes text.",
        )
    if not _can_merge(adapter.kind):
        raise ModelError(
            f"{adapter.place} is an adapter of kind {adapter.kind or 'unknown'}, which cannot be "
            "merged into weights.",
            remedy=f"Give its base model, {adapter.base}, or an adapter such as LoRA.",
        )
    if find_adapter(adapter.base, adapter.base_revision) is not None:
        raise ModelError(
            f"The base of the adapter {adapter.place} is itself an adapter: {adapter.base}.",
            remedy="Merge that one into its base first, and name the result as the base.",
        )
    if quantization != "none":
        raise SettingsError(
            f"{adapter.place} is an adapter, which is merged into its base; that would round it to "
            f"the few bits of {quantization}.",
            remedy="Set quantization to none, or merge the adapter first.",
        )


def _can_merge(kind: str) -> bool:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)  # type: ignore[call-overload]
    return hasattr(tuner, "merge_and_unload")


def has_tokenizer(adapter: Adapter) -> bool:
    """Whether a tokenizer lies in an adapter's folder, which then replaces the base's."""
    folder = expanded(adapter.place)
    return is_local(adapter.place) and any((folder / name).is_file() for name in TOKENIZER_FILES)


def merged(model: Any, adapter: Adapter) -> Any:
    """The base model with the adapter merged into its weights; an ordinary model.

    Args:
        model: The transformers model of the base; its weights change.

    Raises:
        ModelError: The adapter does not fit its base.
    """
    whole = attached(model, adapter).merge_and_unload(safe_merge=True)
    return whole.eval().requires_grad_(False)


def attached(model: Any, adapter: Adapter) -> Any:
    """The adapter as a `PeftModel`, which wraps the modules of `model` in place.

    The adapter loading of transformers ignores DoRA magnitudes.

    Raises:
        ModelError: The adapter does not fit its base, or its weights are not there.
    """
    from peft import PeftModel

    mapping = getattr(model, "_checkpoint_conversion_mapping", {})
    arguments: dict[str, Any] = {"revision": adapter.revision, "key_mapping": mapping}
    with _fitting(adapter), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing keys, which are refused below
        wrapped = PeftModel.from_pretrained(model, adapter.place, **arguments)
        # Once more, for what it returns: which names the files lack, and which it does not know.
        found = wrapped.load_adapter(adapter.place, "default", **arguments)
    wrong = [*found.missing_keys, *found.unexpected_keys]
    if wrong:
        what = "lacks" if found.missing_keys else "has weights for"
        raise ModelError(
            f"The adapter {adapter.place} does not fit its base {adapter.base}: it {what} "
            f"{summary(sorted(found.missing_keys or found.unexpected_keys))}.",
            remedy=_REMEDY,
        )
    return wrapped.eval()


_REMEDY = "Name the model that it was made for as base_model_name_or_path in adapter_config.json."


@contextmanager
def _fitting(adapter: Adapter) -> Iterator[None]:
    """Errors of PEFT in one line.

    Raises:
        ModelError: In place of them.
    """
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next(
            (line for line in lines if "size mismatch" in line), lines[0] if lines else ""
        )
        raise ModelError(
            f"The adapter {adapter.place} cannot be put on its base {adapter.base}: "
            f"{reason[:200].rstrip('.:')}.",
            remedy=_REMEDY,
        ) from error
