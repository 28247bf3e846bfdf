"""Work on a search's model that leaves the search as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from heretic.model.core import Model


@contextmanager
def undisturbed(model: Model) -> Iterator[None]:
    """Bring random states and the batch size back after the block; within it, chance is fresh.

    Without fresh chance, the same question would get the same sampled reply until the search goes
    on.
    """
    size, of_python, of_numpy = model.batch_size, random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(devices=devices):
            torch.seed()
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        model.batch_size = size
