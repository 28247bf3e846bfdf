"""Whether a reply refuses: pure rules over text, without a model and without heavy imports."""

from heretic.refusals.detector import LABELS, Label, Span, Verdict, classify, settled

__all__ = ["LABELS", "Label", "Span", "Verdict", "classify", "settled"]
