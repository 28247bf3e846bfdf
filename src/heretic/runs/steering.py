"""Vectors that steer a model, from the directions of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heretic.errors import RunError
from heretic.runs.shown import read_shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from heretic.runs.folder import RunFolder


def mean_differences(folder: RunFolder) -> NDArray[np.float32]:
    """The run's directions at their lengths: float32 [layers + 1, hidden], row 0 zero.

    Of several directions of a layer, the first counts: that of the bad prompts.

    Raises:
        RunError: The run has kept no lengths, or its files are damaged.
    """
    import numpy as np

    directions = folder.load_directions()
    first = directions if directions.ndim == 2 else directions[:, 0]
    shown = read_shown(folder)
    if shown is None or len(shown.lengths) != len(first):
        raise RunError(
            f"{folder.path} has kept no lengths of its directions: it is of an earlier release.",
            remedy="Search again with the same settings (--checkpoint-action restart).",
        )
    lengths = np.asarray(shown.lengths, dtype=np.float64)
    found: NDArray[np.float32] = (first * lengths[:, None]).astype(np.float32)
    return found
