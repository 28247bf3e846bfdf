"""Whether the files hold every weight of a model.

transformers fills what the files lack with random numbers and goes on. Such a model can be
searched, saved and checked, and all figures are worthless, so it is refused.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from heretic.errors import ModelError

NAMED = 4
"""Most kinds of weights that a message names."""

FOREIGN_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForRewardModel",
    "RewardModel",
)
"""Endings of the names of classes that put out something other than words."""

SCALES = re.compile(r"\.(weight_scale(_inv|_2)?|weight_packed|SCB|weight\.(absmax|quant_map))$")
"""Ends of the names of tensors without which the numbers of quantised weights mean nothing."""

WRAPPED = (".base_layer.", ".lora_A.", ".lora_B.")
"""Parts of names that weights have while an adapter is attached."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_CONVERTED = re.compile(r"^(\S+) +\| +(?:\x1b\[\d+m)?CONVERSION", re.MULTILINE)


def check_complete(model: Any, found: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Check that every parameter was read from the files.

    Buffers that the files lack have the values that the model's code gives them, never random ones.
    Tied parameters count as read if the one that they are tied to was.

    Args:
        model: The transformers model.
        found: What `from_pretrained` returns as the loading information.
        name: The model's name in the messages.

    Returns:
        Names of tensors in the files that belong to nothing in the model.

    Raises:
        ModelError: Parameters are missing, have another shape, or belong to another kind of model.
    """
    unread = tuple(sorted(found["unexpected_keys"]))
    buffers = {key for key, _ in model.named_buffers(remove_duplicate=False)}
    wrong = {key for key, *_ in found["mismatched_keys"]}
    scales = [key for key in unread if SCALES.search(key)]
    if scales and getattr(model.config, "quantization_config", None) is None:
        raise ModelError(
            f"The weights of {name} are quantised, and its config.json does not say how: "
            f"{summary(scales)} would not be used.",
            remedy="Use the config.json that belongs to these weights (quantization_config), or "
            "give the unquantised model.",
        )
    missing = sorted(set(found["missing_keys"]) - buffers - wrong)
    if missing:
        raise ModelError(
            f"The files of {name} lack {_share(model, missing)}: {summary(missing)}. They would be "
            "filled with random numbers.",
            remedy=_remedy(model, missing, unread),
        )
    if wrong:
        key, stored, promised = min(found["mismatched_keys"])
        raise ModelError(
            f"The files of {name} do not fit its config.json: {key} is {list(stored)} in the "
            f"files, and {list(promised)} by the configuration ({len(wrong)} such in all).",
            remedy="Use the config.json that belongs to these weights, or download the model "
            "again.",
        )
    if unread and _foreign_head(model):
        raise ModelError(
            f"{name} was saved as {_foreign_head(model)}, which is not a language model: "
            f"{summary(unread)} would not be used.",
            remedy="Give a model that writes text.",
        )
    return unread


def summary(names: Iterable[str]) -> str:
    """Names in short: those that differ by numbers alone as one, `layers.0-3.mlp`."""
    kinds: dict[str, list[list[int]]] = defaultdict(list)
    for name in names:
        kinds[_NUMBER.sub("{}", name)].append([int(number) for number in _NUMBER.findall(name)])
    shown = [
        pattern.format(*(_span(numbers) for numbers in zip(*rows, strict=True)))
        for pattern, rows in kinds.items()
    ]
    more = len(shown) - NAMED
    return ", ".join(shown[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _span(numbers: Iterable[int]) -> str:
    first, last = min(numbers), max(numbers)
    return str(first) if first == last else f"{first}-{last}"


def _share(model: Any, missing: list[str]) -> str:
    total = len({key for key, _ in model.named_parameters(remove_duplicate=False)})
    return "every weight" if len(missing) == total else f"{len(missing)} of {total} weights"


def _remedy(model: Any, missing: list[str], unread: tuple[str, ...]) -> str:
    """What most likely is the matter."""
    prefix = _common_prefix(missing, unread)
    if prefix:
        return f"The names in the files begin with `{prefix}`: save the model without that prefix."
    if _foreign_head(model):
        return f"They were saved as {_foreign_head(model)}: give a model that writes text."
    if any(part in key for key in unread for part in WRAPPED):
        return (
            "They were saved with an adapter attached: merge it (merge_and_unload in PEFT) and "
            "save again."
        )
    if unread:
        return (
            f"The files hold {summary(unread)} instead: use the config.json that belongs to these "
            "weights."
        )
    return "Download the model again, or use the config.json that belongs to these weights."


def _common_prefix(missing: list[str], unread: tuple[str, ...]) -> str:
    """What has to be removed from names in the files to get names that are missing; or nothing."""
    wanted = set(missing)
    ends = {key: next((n for n in missing if key.endswith(n)), None) for key in unread[:NAMED]}
    prefixes = {key.removesuffix(end) if end else "" for key, end in ends.items()}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    fits = all(key.removeprefix(prefix) in wanted for key in unread[:NAMED])
    return prefix if fits else ""


def _foreign_head(model: Any) -> str | None:
    """The class that the configuration names, if it is not one of a language model."""
    named = str((getattr(model.config, "architectures", None) or [""])[0])
    return named if named.endswith(FOREIGN_HEADS) and named != type(model).__name__ else None


class _Report(logging.Filter):
    """Keeps transformers' table of missing and unread tensors, so that it is not printed."""

    text = ""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "LOAD REPORT" not in message:
            return True
        self.text = message
        return False


def read_weights(
    auto: Any, place: str | None, name: str, arguments: Mapping[str, Any]
) -> tuple[Any, tuple[str, ...]]:
    """Load a model and check that it is complete.

    Args:
        auto: A class with `from_pretrained`.
        place: Its first argument; None if the arguments hold a `state_dict`.
        name: The model's name in the messages.
        arguments: Its other arguments.

    Returns:
        The model, and the names of tensors in the files that belong to nothing in it.

    Raises:
        ModelError: As `check_complete`, or tensors cannot be put together to a parameter.
    """
    with _reported(name):
        model, found = auto.from_pretrained(
            place, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
    return model, check_complete(model, found, name)


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Hide transformers' report on the tensors, which `check_complete` replaces.

    Raises:
        ModelError: Tensors cannot be put together to a parameter, such as experts of which some are
            missing.
    """
    logger, report = logging.getLogger("transformers.modeling_utils"), _Report()
    logger.addFilter(report)
    try:
        yield
    except RuntimeError as error:
        broken = _CONVERTED.findall(report.text)
        if not broken:
            raise
        raise ModelError(
            f"The files of {name} do not hold all parts of {summary(broken)}.",
            remedy="Download the model again, or use the config.json that belongs to these "
            "weights.",
        ) from error
    finally:
        logger.removeFilter(report)
