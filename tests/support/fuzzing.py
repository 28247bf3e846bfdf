"""Damaged and hostile documents for hypothesis: valid ones, changed in structure or in bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Document = Any
NESTED = 3000
"""Levels of the deepest documents: more than the parsers' recursion allows."""

TEXTS = (
    "", " ", "\0", "\ud800", "a\nb", "\x1b[31m", "\u202e", "é", "null", "NaN", "-1", "1e999", "{",
    "[1", "[" * NESTED, "..", "../../x", "/", "/proc/self/mem", "~", "~nosuch", ".", "x" * 5000,
    "{{", "{% for %}", "train[:5]", "5GB", "%s%n", "auto", "file.py:Class", "a.toml", "./a",
    "org/name", "true", "2" * 400, "\\",
)  # fmt: skip

SCALARS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 10**308, 10**400,
    0.0, -0.0, 0.5, 1.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"), *TEXTS,
)  # fmt: skip


def nested(kind: str, levels: int) -> Document:
    """A list or table within a list or table, and so on."""
    value: Document = 1
    for _ in range(levels):
        value = [value] if kind == "list" else {"a": value}
    return value


def values() -> st.SearchStrategy[Document]:
    """Any JSON value, with a liking for those that make trouble."""
    return st.one_of(
        st.sampled_from(SCALARS),
        st.text(max_size=8),
        st.integers(),
        st.floats(),
        st.builds(nested, st.sampled_from(["list", "table"]), st.sampled_from([1, 2, 70, 300])),
        st.lists(st.sampled_from(SCALARS), max_size=3),
        st.dictionaries(
            st.sampled_from(["a", "", "0", "weights"]), st.sampled_from(SCALARS), max_size=2
        ),
    )


def _places(value: Document, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a document; of long lists, the first ones."""
    if isinstance(value, dict):
        for key in value:
            found.append((value, key))
            _places(value[key], found)
    elif isinstance(value, list):
        for index in range(min(len(value), 3)):
            found.append((value, index))
            _places(value[index], found)
    return found


@st.composite
def changed(draw: st.DrawFn, valid: Document) -> Document:
    """A document with up to three of its values replaced, taken away, renamed or added."""
    document = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document, [])
        if not places:
            return draw(values())
        container, key = places[draw(st.integers(0, len(places) - 1))]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"]))
        if action == "replace":
            container[key] = draw(values())
        elif action == "remove":
            del container[key]
        elif isinstance(container, dict):
            name = draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=6)))
            container[name] = container.pop(key) if action == "rename" else draw(values())
        else:
            container.insert(key, draw(values()))
    return document


@st.composite
def torn(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes that are cut off, overwritten, doubled, or in another encoding."""
    kind = draw(st.sampled_from(["cut", "byte", "insert", "double", "mark", "utf16", "latin"]))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if kind == "cut":
        return data[:at]
    if kind == "byte":
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    if kind == "insert":
        piece = draw(
            st.one_of(
                st.binary(max_size=6),
                st.sampled_from([t.encode("utf-8", "replace") for t in TEXTS]),
            )
        )
        return data[:at] + piece + data[at:]
    if kind == "double":
        return data[:at] + data[at // 2 :]
    if kind == "mark":
        return b"\xef\xbb\xbf" + data
    text = data.decode("utf-8", "replace")
    return text.encode("utf-16") if kind == "utf16" else text.encode("latin-1", "replace")


def encoded(value: Document) -> bytes:
    """A document as JSON, also what JSON does not know; half characters stay."""
    return json.dumps(value, ensure_ascii=True).encode()


def toml(value: Document) -> str:
    """A table as TOML, as far as TOML has what it holds."""
    tables = value if isinstance(value, dict) else {"model": value}
    return "".join(f"{json.dumps(key)} = {_toml(inner)}\n" for key, inner in tables.items())


def _toml(value: Document) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return '""' if value is None else json.dumps(value)


def files(
    documents: Sequence[Document], text: Callable[[Document], bytes] = encoded
) -> st.SearchStrategy[bytes]:
    """Files with one of these documents, changed in structure, in bytes, or in both."""
    one = (
        st.sampled_from(range(len(documents)))
        .flatmap(lambda index: changed(documents[index]))
        .map(text)
    )
    return st.one_of(one, one, one.flatmap(torn))
