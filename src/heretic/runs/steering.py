"""The first direction of each layer of a run, and at its length, as a vector that steers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heretic.errors import RunError
from heretic.runs.shown import read_shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from heretic.runs.folder import RunFolder


def first_directions(folder: RunFolder) -> NDArray[np.float32]:
    """The run's directions of the bad prompts: unit or zero, float32 [layers + 1, hidden].

    Row 0, of the embeddings, is zero.

    Raises:
        RunError: The run has kept no directions, or the file is damaged.
    """
    directions = folder.load_directions()
    first: NDArray[np.float32] = directions if directions.ndim == 2 else directions[:, 0]
    return first


def mean_differences(folder: RunFolder) -> NDArray[np.float32]:
    """The run's directions at their lengths: float32 [layers + 1, hidden], row 0 zero.

    Raises:
        RunError: The run has kept no lengths, or its files are damaged.
    """
    import numpy as np

    first = first_directions(folder)
    shown = read_shown(folder)
    if shown is None or len(shown.lengths) != len(first):
        raise RunError(
            f"{folder.path} has kept no lengths of its directions: it is of an earlier release.",
            remedy="Search again with the same settings (--checkpoint-action restart).",
        )
    lengths = np.asarray(shown.lengths, dtype=np.float64)
    found: NDArray[np.float32] = (first * lengths[:, None]).astype(np.float32)
    return found
