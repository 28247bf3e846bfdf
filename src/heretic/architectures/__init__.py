"""Find the modules that write to the residual stream, by a table of names that is checked."""

from heretic.architectures.resolver import Writer, find_writers
from heretic.architectures.verify import Structure, resolve

__all__ = ["Structure", "Writer", "find_writers", "resolve"]
