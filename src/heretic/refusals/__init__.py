"""Tell whether a reply refuses, by rules over its text, without a model or heavy imports."""

from heretic.refusals.detector import (
    LABELS,
    VERSION,
    Classification,
    Label,
    Span,
    classify,
    settled,
)
from heretic.refusals.stance import Stance, stance

__all__ = [
    "LABELS",
    "VERSION",
    "Classification",
    "Label",
    "Span",
    "Stance",
    "classify",
    "settled",
    "stance",
]
