"""Verdicts on replies, by a language model behind an API or by a local classifier."""
