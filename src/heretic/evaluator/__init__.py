"""Evaluate plans and models: their outputs and scores against the unedited model."""

from heretic.evaluator.library import LibraryEvaluator as Evaluator
from heretic.prompts import EvaluationPrompts

__all__ = ["EvaluationPrompts", "Evaluator"]
