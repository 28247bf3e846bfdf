"""Trackers of experiments as reporters: figures of a search, for Weights & Biases and MLflow.

A tracker runs in a process of its own. What it prints, the handlers that it installs, the servers
that it waits for and the errors that it raises stay there: a search never waits for it.
"""
