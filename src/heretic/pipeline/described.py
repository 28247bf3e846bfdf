"""Whether a search of a model fits a device, from the model's description."""

from __future__ import annotations

from dataclasses import dataclass

from heretic.config.settings import Settings
from heretic.model.description import Description
from heretic.model.loading import resolve_dtype
from heretic.model.room import Sizes
from heretic.search.need import Need, needed
from heretic.system.machine import accelerator, device_name, total_memory

PROMPTS = 100
"""Bad evaluation prompts that are assumed, as the prompt sets are not read."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a search would run on.

    Attributes:
        name: For people.
        memory: Bytes.
        itemsize: Bytes of a number in the dtype that it would use.
    """

    name: str
    memory: int
    is_cpu: bool
    itemsize: int

    @classmethod
    def of(cls, dtype: str, memory: float | None) -> Device:
        """This machine's, or an accelerator with so many GB, where weights have half precision."""
        if memory is not None:
            return cls(f"an accelerator with {memory:g} GB", int(memory * 1e9), False, 2)
        device = accelerator()
        found = resolve_dtype(dtype, device)
        itemsize = 2 if isinstance(found, str) else found.itemsize
        total = total_memory(device)
        name = f"this {device_name(device)} with {total / 1e9:.3g} GB"
        return cls(name, total, device.type == "cpu", itemsize)


def need_of(found: Description, settings: Settings, device: Device, prompt: int) -> Need:
    """What memory a search of a described model takes on a device.

    Args:
        prompt: Tokens of a prompt, template included.
    """
    bits = {"bnb_4bit": 4, "bnb_8bit": 8}.get(settings.quantization, 0)
    return need_of_sizes(found.sizes(device.itemsize, bits), settings, device, prompt)


def need_of_sizes(sizes: Sizes, settings: Settings, device: Device, prompt: int) -> Need:
    """What memory a search of a model of these sizes takes on a device.

    Args:
        prompt: Tokens of a prompt, template included.
    """
    return needed(
        sizes,
        device.memory,
        on_cpu=device.is_cpu,
        reply=settings.max_response_length,
        prompt=prompt,
        prompts=PROMPTS,
        most_rows=settings.batch_size or settings.max_batch_size,
        plans=settings.plans_at_once,
    )
