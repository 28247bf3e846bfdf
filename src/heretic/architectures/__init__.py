"""Which modules write the residual stream: a table of names, checked on every model."""

from heretic.architectures.resolver import Writer, find_writers
from heretic.architectures.verify import Structure, resolve

__all__ = ["Structure", "Writer", "find_writers", "resolve"]
