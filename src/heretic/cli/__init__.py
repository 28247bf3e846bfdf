"""The command line: the only place that prints or asks."""

INTERRUPTED = 130
"""Exit status of what was interrupted and kept what it had found."""
