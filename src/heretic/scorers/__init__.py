"""Scorers: plugins that compute one figure from the outputs of an edited model."""

from heretic.scorers.base import Needs, Outputs, PromptSet, Scorer
from heretic.scorers.registry import check_scorers, load_scorers

__all__ = ["Needs", "Outputs", "PromptSet", "Scorer", "check_scorers", "load_scorers"]
