"""Other distributions whose package is called `heretic` too.

Wheels record their files, and a package of that name is told by these records. What they do not
tell, such as files copied by hand, is told by a module beside a package of the same name: Python
takes the package, and no release of this project has both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import heretic

PACKAGE = heretic.__name__
HERE = Path(heretic.__file__).parent

_APART = "Install this one in an environment of its own: python3 -m venv FOLDER."


@dataclass(frozen=True)
class Distribution:
    """An installed distribution that has a package `heretic`.

    Attributes:
        name: Name, as its record spells it.
        version: Version.
        folder: The folder that it is installed in.
    """

    name: str
    version: str
    folder: Path


def mixture(*, path: Sequence[str] | None = None, package: Path = HERE, prefix: str = "") -> str:
    """One sentence with a remedy if another package `heretic` is here, else nothing.

    Args:
        path: Folders that modules are imported from; by default `sys.path`.
        package: This package's folder.
        prefix: Read only records of distributions whose name begins so; all records take a tenth
            of a second.
    """
    for other in _providing(sys.path if path is None else path, prefix):
        if other.version != heretic.__version__:
            return (
                f"Another package named {PACKAGE} is installed here: {other.name} "
                f"{other.version}, in {other.folder}. Modules of both may get mixed. {_APART}"
            )
    foreign = _modules_beside_packages(package)
    if foreign:
        return f"{package} holds {', '.join(foreign)} of another distribution. {_APART}"
    return ""


def _providing(path: Sequence[str], prefix: str) -> Iterator[Distribution]:
    """The distributions whose records name files of a package `heretic`."""
    for folder in dict.fromkeys(path):
        for entry in sorted(Path(folder or ".").glob(f"{prefix}*.dist-info")):
            name, _, version = entry.stem.rpartition("-")
            if _records_package(entry / "RECORD"):
                yield Distribution(name.replace("_", "-"), version, entry.parent)


def _records_package(record: Path) -> bool:
    try:
        content = record.read_bytes()
    except OSError:
        return False
    return f"\n{PACKAGE}/".encode() in b"\n" + content


def _modules_beside_packages(package: Path) -> list[str]:
    """Modules that stand beside a package of their own name in the package's folder."""
    return sorted(
        module.name
        for module in package.glob("*.py")
        if module.with_suffix("").joinpath("__init__.py").is_file()
    )
