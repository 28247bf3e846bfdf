"""Turns what libraries raise about a model into one line with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Literal

from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from heretic.errors import HereticError, ModelError, UnsupportedModelError
from heretic.model.files import pickled
from heretic.system.hub import is_local
from heretic.system.models import FORMS, of_the_hub

UNKNOWN_GGUF = "GGUF model with architecture"
"""Part of transformers' error about a GGUF file that it cannot read."""

NO_SAFETENSORS = "cannot be loaded with `safetensors`"
"""Part of transformers' error about a model on the Hub without such files."""

Part = Literal["configuration", "tokenizer"]

_REMEDIES: dict[Part, str] = {
    "configuration": "Mend its config.json, or download it again.",
    "tokenizer": "Mend the tokenizer's files beside the model, or download them again; some "
    "tokenizers need sentencepiece or tiktoken installed.",
}


@contextmanager
def model_errors(name: str, part: Part | None = None) -> Iterator[None]:
    """Turn errors about a model into a `ModelError`.

    Args:
        name: The model's name in the messages.
        part: What is read, if errors of any kind come from its content: libraries raise many.
            Without it, errors that are not known pass.
    """
    try:
        yield
    except HereticError:
        raise
    except BaseException as error:
        # The panics of libraries in Rust are no `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        told = of_the_hub(name, _said_by_the_hub(name, error)) or _of_content(name, error)
        if told is None and part is not None:
            told = ModelError(
                f"The {part} of {name} cannot be used: {reason(error)}", remedy=_REMEDIES[part]
            )
        if told is None:
            raise
        raise told from error


def _said_by_the_hub(name: str, error: BaseException) -> BaseException:
    """What the Hub said, if that is behind an error; transformers wraps it in an `OSError`."""
    causes: list[BaseException] = []
    cause: BaseException | None = error if isinstance(error, OSError) else None
    while cause is not None and cause not in causes and not is_local(name):
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    said = (
        cause
        for kind in (RepositoryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled)
        for cause in causes
        if isinstance(cause, kind)
    )
    return next(said, error)


def _of_content(name: str, error: BaseException) -> ModelError | None:
    text = str(error)
    if isinstance(error, UnpicklingError):
        return ModelError(
            f"The pickles of {name} hold more than tensors, or are damaged; they are not loaded.",
            remedy="Do not trust them. Take a model with safetensors files.",
        )
    if isinstance(error, ImportError):
        return ModelError(
            f"Loading {name} needs a package that is not installed: {reason(error)}",
            remedy="Install it and try again.",
        )
    if isinstance(error, OSError):
        if NO_SAFETENSORS in text:
            return pickled(name, "no safetensors file")
        return ModelError(
            f"{name} could not be loaded: {reason(error)}",
            remedy=FORMS,
        )
    return _of_values(name, error) if isinstance(error, ValueError) else None


def _of_values(name: str, error: ValueError) -> ModelError | None:
    text = str(error)
    if "trust_remote_code" in text:
        return ModelError(
            f"{name} brings its own code, which runs only with your consent.",
            remedy="Read that code, then pass --trust-remote-code.",
        )
    if UNKNOWN_GGUF in text:
        return UnsupportedModelError(
            f"transformers cannot load {name}: {reason(error)}",
            remedy="Give the model that the file was made from, as a Hub id or a folder.",
        )
    if "Unrecognized" in text or "does not recognize" in text:
        return UnsupportedModelError(
            f"transformers cannot load {name}: {reason(error)}",
            remedy="Upgrade transformers, or check the folder.",
        )
    return None


def reason(error: BaseException) -> str:
    """The first line of an error, as a sentence; of errors about a field, what it says of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return f"{type(error).__name__}."
    text = lines[0]
    if text.endswith(":") and len(lines) > 1:  # "Validation error for field 'x':"
        text = f"{text} {lines[1].partition(': ')[2] or lines[1]}"
    if isinstance(error, KeyError | AttributeError | TypeError | IndexError):
        text = f"{type(error).__name__}: {text}"  # its text alone says little
    return text if text.endswith((".", "!", "?")) else f"{text}."
