"""Heretic: finds, by itself, the smallest edit of a model that removes one learned behaviour."""

import logging

__version__ = "2.0.0.dev0"

# A library prints nothing unless it is asked to.
logging.getLogger(__name__).addHandler(logging.NullHandler())
