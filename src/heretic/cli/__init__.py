"""The command line: the only place that prints or asks."""

INTERRUPTED = 130
"""Exit status of a command that the user interrupted; its results so far are kept."""
