"""Heretic: finds, by itself, the smallest edit of a model that removes one learned behaviour."""

__version__ = "3.0.0.dev0"
