"""Plans in, scores out."""

from heretic.evaluator.evaluator import EvaluationPrompts, Evaluator

__all__ = ["EvaluationPrompts", "Evaluator"]
