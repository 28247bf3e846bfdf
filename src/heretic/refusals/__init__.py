"""Whether a reply refuses: pure rules over text, without a model and without heavy imports."""

from heretic.refusals.detector import LABELS, Classification, Label, Span, classify, settled

__all__ = ["LABELS", "Classification", "Label", "Span", "classify", "settled"]
