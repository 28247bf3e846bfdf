"""Whether a run was judged by the refusal detector of this release; if not, its search is over.

Figures of two versions cannot be compared, so a search that mixed them would choose trials by the
version that judged them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from heretic.errors import RunError
from heretic.events import Notice, Reporter
from heretic.runs.manifest import RunManifest
from heretic.scorers.base import Scorer
from heretic.scorers.registry import detector_version


def other_detector(
    manifest: RunManifest, scorers: Sequence[Scorer], *, searched: bool = True
) -> str | None:
    """A sentence that says that a run was judged by another version; None if it was not.

    Args:
        searched: Whether only the objectives of the search are looked at, or all scorers.

    Raises:
        RunError: The manifest is malformed.
    """
    now = detector_version(scorers, searched=searched)
    if now is None or manifest.detector == now:
        return None
    return (
        f"This run's replies were judged by version {manifest.detector} of the refusal detector, "
        f"and this release has version {now}: their figures cannot be compared."
    )


def check_detector(manifest: RunManifest, scorers: Sequence[Scorer], path: Path) -> None:
    """Check that the search of a run can go on.

    Args:
        path: Folder of the run.

    Raises:
        RunError: Its objectives were judged by another version of the detector.
    """
    told = other_detector(manifest, scorers)
    if told is not None:
        raise RunError(
            f"{told} The search in {path} cannot go on.",
            remedy="Search anew (checkpoint_action = restart, which deletes its trials; or another "
            f"study_checkpoint_dir). A trial of it can still be saved: heretic export {path}",
        )


def tell_of_detector(
    known: RunManifest | None, scorers: Sequence[Scorer], reporter: Reporter
) -> None:
    """Warn if the scores of a run were judged by another version of the detector.

    Args:
        known: The run's manifest; None for a new run.
    """
    told = None if known is None else other_detector(known, scorers, searched=False)
    if told is not None:
        reporter.emit(Notice(told, level="warning"))
