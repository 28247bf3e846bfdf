"""Where a model is read from: a Hub id, a folder, a GGUF file in either, or an adapter's base.

GGUF files load dequantised, as an ordinary model, which is edited and saved as such. The tokenizer
comes from the file as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from heretic.errors import SettingsError
from heretic.system.adapters import Adapter, find_adapter
from heretic.system.files import expanded
from heretic.system.hub import gguf_parts, is_local


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Which model is read. The fields are the settings of the same names.

    Attributes:
        model: Hub id, folder, or GGUF file; a Hub id or folder may hold an adapter.
        model_commit: Branch, tag or commit on the Hub.
        trust_remote_code: Whether code that comes with the model may run.
    """

    model: str
    model_commit: str | None
    trust_remote_code: bool

    @property
    def is_gguf(self) -> bool:
        """Whether the model is a GGUF file."""
        return gguf_parts(self.model) is not None

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that `model` is; None if it is a whole model."""
        return find_adapter(self.model, self.model_commit)


Source = TypeVar("Source", bound=ModelSource)


def base_of(source: Source) -> Source:
    """The source of an adapter's base model; that of any other model unchanged."""
    adapter = source.adapter
    if adapter is None:
        return source
    return replace(source, model=adapter.base, model_commit=adapter.base_revision)


def origin(source: ModelSource) -> tuple[str, dict[str, Any]]:
    """The first argument of `from_pretrained` for the model, and its keyword arguments."""
    arguments: dict[str, Any] = {
        "revision": source.model_commit,
        "trust_remote_code": source.trust_remote_code,
    }
    parts = gguf_parts(source.model)
    if parts is None:
        return source.model, arguments
    place, file = parts
    if is_local(source.model):
        # Absolute: transformers would prefer a file of that name in the working directory.
        place = str(expanded(place).absolute())
        file = str(Path(place) / file)
    return place, {**arguments, "gguf_file": file}


def dequantising(model: str, quantization: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that unpack a GGUF file, which newer transformers keep packed.

    Raises:
        SettingsError: `quantization` asks to quantise it again.
    """
    if quantization != "none":
        raise SettingsError(
            f"{model} is a GGUF file, which loads dequantised; quantization is {quantization}.",
            remedy="Set quantization to none, or give the unquantised model.",
        )
    try:
        from transformers import GgufConfig
    except ImportError:  # older releases always unpack
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def forget_quantisation(model: Any) -> None:
    """Make a dequantised model an ordinary one, which can be saved.

    GGUF stores numbers in single precision, so 1e-5 is read as 9.999999747378752e-06. Each number
    in the configuration is replaced by the shortest one that is equal in single precision.
    """
    import numpy as np

    config = model.config
    model.hf_quantizer = None
    config.__dict__.pop("quantization_config", None)
    config.__dict__.pop("_model_name_or_path", None)  # the file's title, not a repository
    for name, value in vars(config).items():
        if isinstance(value, float):
            setattr(config, name, float(str(np.float32(value))))
