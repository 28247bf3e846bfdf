"""Metrics of an edited model, as plugins: outputs in, one figure out."""

from heretic.scorers.base import Needs, Outputs, PromptSet, Scorer
from heretic.scorers.registry import check_scorers, load_scorers

__all__ = ["Needs", "Outputs", "PromptSet", "Scorer", "check_scorers", "load_scorers"]
