"""Every setting, where values come from, and the pages made from them.

The names that programs use are loaded when they are first asked for: the help reads `fields` alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heretic.config.settings import Settings, load_settings
    from heretic.config.tables import DatasetSpecification, ScorerSpecification

__all__ = ["DatasetSpecification", "ScorerSpecification", "Settings", "load_settings"]


def __getattr__(name: str) -> Any:
    """A name of `__all__`, from its module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "tables" if name.endswith("Specification") else "settings"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
