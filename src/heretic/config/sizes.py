"""Sizes of files as users write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])B\s*", re.IGNORECASE | re.ASCII)
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size_in_bytes(text: str) -> int:
    """The bytes that a size such as `5GB` means.

    Raises:
        ValueError: It is not a size, or less than a byte.
    """
    found = _SIZE.fullmatch(text)
    size = 0 if found is None else int(float(found[1]) * _UNITS[found[2].upper()])
    if size < 1:
        raise ValueError("should be a number above 0 and KB, MB, GB or TB, such as 5GB")
    return size


def checked_size(text: str) -> str:
    """A size unchanged, for the validation of settings.

    Raises:
        ValueError: It is not a size.
    """
    size_in_bytes(text)
    return text
