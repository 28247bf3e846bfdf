"""Plans in, scores out."""

from heretic.evaluator.library import LibraryEvaluator as Evaluator
from heretic.prompts import EvaluationPrompts

__all__ = ["EvaluationPrompts", "Evaluator"]
