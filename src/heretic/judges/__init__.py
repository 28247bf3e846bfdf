"""Verdicts on replies by a language model behind an API. No torch; nothing here knows of models."""
