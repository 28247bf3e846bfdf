"""Import optional dependencies; the error for a missing one says what to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from heretic.errors import HereticError


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
