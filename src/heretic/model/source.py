"""Where a model is read from: a Hub id, a folder, or a GGUF file in either.

GGUF files load dequantised: their numbers become an ordinary model's, which is edited and saved as
one. The tokenizer comes from the file as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heretic.config.settings import Settings
from heretic.errors import SettingsError
from heretic.system.hub import gguf_parts, is_local


def origin(settings: Settings) -> tuple[str, dict[str, Any]]:
    """The first argument of any `from_pretrained` for the model, and those that go with it."""
    arguments: dict[str, Any] = {
        "revision": settings.model_commit,
        "trust_remote_code": settings.trust_remote_code,
    }
    parts = gguf_parts(settings.model)
    if parts is None:
        return str(settings.model), arguments
    place, file = parts
    if is_local(settings.model):
        # Whole: transformers would take a file of that name in the working directory first.
        place = str(Path(place).expanduser().absolute())
        file = str(Path(place) / file)
    return place, {**arguments, "gguf_file": file}


def is_gguf(settings: Settings) -> bool:
    """Whether the model is a GGUF file."""
    return gguf_parts(settings.model) is not None


def dequantising(settings: Settings) -> dict[str, Any]:
    """Arguments of `from_pretrained` that unpack a GGUF file, which newer transformers keep packed.

    Raises:
        SettingsError: It is to be quantised again.
    """
    if settings.quantization != "none":
        raise SettingsError(
            f"{settings.model} is a GGUF file, which loads dequantised; quantization is "
            f"{settings.quantization}.",
            remedy="Set quantization to none, or give the unquantised model.",
        )
    try:
        from transformers import GgufConfig
    except ImportError:  # before there was a choice
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def forget_quantisation(model: Any) -> None:
    """Make a dequantised model an ordinary one, which can be saved.

    GGUF stores single precision, so that 1e-5 reads 9.999999747378752e-06: numbers of the
    configuration become the shortest that are the same in single precision.
    """
    import numpy as np

    config = model.config
    model.hf_quantizer = None
    config.__dict__.pop("quantization_config", None)
    config.__dict__.pop("_model_name_or_path", None)  # the file's title, no repository
    for name, value in vars(config).items():
        if isinstance(value, float):
            setattr(config, name, float(str(np.float32(value))))
