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

__all__ = ["LABELS", "VERSION", "Classification", "Label", "Span", "classify", "settled"]
