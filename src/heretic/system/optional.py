"""Optional dependencies: which are installed, and the error that says what to install."""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType

from heretic.errors import HereticError


def installed(distribution: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def require(
    module: str, *, extra: str, purpose: str, kind: type[HereticError] = HereticError
) -> ModuleType:
    """Import an optional module.

    Args:
        module: Import name, e.g. `pacmap`.
        extra: The extra of this distribution that installs it, e.g. `research`.
        purpose: What needs it, as the subject of a sentence, e.g. `Plotting residuals`.
        kind: Class of the error.

    Raises:
        HereticError: An error of class `kind`: the module, or something it needs, is not
            installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise kind(
            f"{purpose} needs the package {module}: {error}.",
            remedy=f"In the folder of Heretic's source: pip install '.[{extra}]'",
        ) from error
