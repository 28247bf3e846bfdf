"""What addresses call runs."""

from __future__ import annotations

import re

_NOT_UTF8 = re.compile("[\ud800-\udfff]")
"""What Python has in place of bytes of a name that are not UTF-8."""


def key_of(name: str) -> str:
    """A run's name as part of an address, which has no slashes; few folders have colons.

    Addresses are UTF-8: of a name that is not, its other bytes are written as `~ff`.
    """
    return _NOT_UTF8.sub(lambda found: f"~{ord(found[0]) & 0xFF:02x}", name.replace("/", ":"))
