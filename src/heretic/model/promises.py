"""Whether a model's configuration promises about as much as its files hold, before memory is taken.

Otherwise a configuration that belongs to a larger model, or is damaged, fills the memory first:
weights of another shape are made up before they are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heretic.errors import ModelError
from heretic.model.completeness import summary
from heretic.system.headers import safetensors_header

MOST_LAYERS = 2000
"""More layers than any model has."""

LAYERS = ("layers", "layer")
"""Ends of the keys of a configuration that hold a number of layers."""

MOST_TIMES, MOST_MORE = 2, 2**27
"""Values that a model may have, as a multiple of those in its files and beyond them: its head may
be tied to its embeddings, and what is missing in a small model is named when that is loaded."""


def check_layers(config: Mapping[str, Any], where: Path) -> None:
    """Refuse a configuration of a number of layers that no model has.

    Args:
        config: The content of config.json, or a part of it.
        where: That file, for the message.

    Raises:
        ModelError: It has such a number.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_layers(value, where)
        elif isinstance(value, int) and key.endswith(LAYERS) and value > MOST_LAYERS:
            raise ModelError(
                f"{where} cannot be used: {key} is {value}.",
                remedy="Mend it, or download it again.",
            )


def check_size(skeleton: Any, weights: Sequence[Path], name: str) -> None:
    """Refuse a configuration that promises far more values than the files hold.

    Args:
        skeleton: The model without weights.
        weights: The model's safetensors files, all of them; none are checked if there are none, or
            if they are quantised, as they then hold several values in one.
        name: The model's name in the message.

    Raises:
        ModelError: It promises too many.
    """
    if not weights or getattr(skeleton.config, "quantization_config", None) is not None:
        return
    promised = {name: parameter.numel() for name, parameter in skeleton.named_parameters()}
    tensors = [tensor for path in weights for tensor in safetensors_header(path)[1].items()]
    held = sum(math.prod(fields["shape"]) for _, fields in tensors)
    total = sum(promised.values())
    if total > MOST_TIMES * held and total > held + MOST_MORE:
        lacking = sorted(promised.keys() - {key for key, _ in tensors})
        missing = f": they lack {summary(lacking)}" if lacking else ""
        raise ModelError(
            f"The config.json of {name} promises {total:,} weights, and the files hold "
            f"{held:,}{missing}.",
            remedy="Use the config.json that belongs to these weights, or download the model "
            "again.",
        )
