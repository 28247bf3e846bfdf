"""The settings as fields of pydantic models, one module for each group; `all` composes them.

These modules import pydantic and nothing heavier, so that `heretic --help` starts quickly.
"""
