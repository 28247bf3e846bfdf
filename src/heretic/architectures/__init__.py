"""Which modules write the residual stream: a table of data and one resolver."""

from heretic.architectures.resolver import Writer, find_layers, find_writers, verify_writers

__all__ = ["Writer", "find_layers", "find_writers", "verify_writers"]
