"""Reads fits, and keeps those that plans of a model may name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from heretic.errors import RunError
from heretic.method.fits import Fit
from heretic.records.plan import Plan, fit_file
from heretic.system.files import refuse_odd


def parse_fit(content: bytes, path: Path, digest: str) -> Fit:
    """A fit from the content of its file.

    Raises:
        RunError: The content is damaged, or is another fit.
    """
    try:
        fit = Fit.from_content(content)
    except ValueError as error:
        raise RunError(f"{path} cannot be read as a fit: {error}.") from error
    if fit.digest != digest:
        raise RunError(
            f"{path} holds the fit {fit.digest}, and the plan was made with {digest}.",
            remedy="Take the file from the run, or the export, that the plan comes from.",
        )
    return fit


def read_fits(plans: Sequence[Plan], *folders: Path) -> list[Fit]:
    """The fits that plans name, each from the first of these folders that has it.

    Raises:
        RunError: No folder has it, or its file is damaged.
    """
    wanted = sorted({digest for plan in plans for digest in plan.fits})
    return [_read_fit(digest, folders) for digest in wanted]


def _read_fit(digest: str, folders: Sequence[Path]) -> Fit:
    places = [folder / fit_file(digest) for folder in folders]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise RunError(
            f"The plan needs the vectors of a fit, and {places[0]} is missing.",
            remedy="Put the file there: it lies in the run folder, and in every export.",
        )
    try:
        refuse_odd(path)
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error
    return parse_fit(content, path, digest)


class Fits:
    """The fits that plans of a model may name, by digest."""

    def __init__(self) -> None:
        self._known: dict[str, Fit] = {}

    def add(self, *fits: Fit) -> None:
        """Make plans that name these fits possible."""
        self._known |= {fit.digest: fit for fit in fits}

    def __getitem__(self, digest: str) -> Fit:
        """The fit of this digest.

        Raises:
            RunError: It is not known.
        """
        if digest not in self._known:
            raise RunError(
                f"The plan needs the vectors of the fit {digest}.",
                remedy=f"They are in {fit_file(digest)}, beside the plan.",
            )
        return self._known[digest]
