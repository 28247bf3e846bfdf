"""Makes items of the rows of tables: contexts with candidate endings, one of which is right.

They come as tables do on the Hub: a list of endings in one column (HellaSwag), a column for each
ending (PIQA), an object of texts and labels (ARC), or texts whose last word is the ending
(LAMBADA).
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from heretic.errors import PromptError

if TYPE_CHECKING:
    from heretic.config.tables import ItemSpecification

ReadItem = tuple[str, tuple[str, ...], int]
"""A context, its endings, and the number of the right one."""


def columns_of(specification: ItemSpecification) -> list[str]:
    """The columns of a table from which `items_of` makes items, in this order."""
    endings = specification.endings
    columns = [endings] if isinstance(endings, str) else list(endings or ())
    right = [specification.right] if specification.right is not None else []
    return [specification.column, *columns, *right]


def items_of(specification: ItemSpecification, columns: Sequence[Sequence[Any]]) -> list[ReadItem]:
    """The items of a set, in order; prefix and suffix belong to the contexts.

    Spaces around endings, and before the delimiter, are left out.

    Args:
        columns: The values of `columns_of`.

    Raises:
        PromptError: A row is no item; the message names it.
    """
    found = []
    for number, (context, *cells) in enumerate(zip(*columns, strict=True), 1):
        try:
            item = _item(context, cells, listed=isinstance(specification.endings, str))
            _check(item)
        except ValueError as error:
            raise PromptError(
                f"Row {number} of the set {specification.dataset}, {specification.split} is no "
                f"item: {error}.",
                remedy="Leave it out (`split`), or check the columns that `column`, `endings` and "
                "`right` name.",
            ) from error
        whole = f"{specification.prefix}{item[0]}{specification.suffix}"
        found.append((whole.rstrip(" ") if specification.delimiter else whole, *item[1:]))
    return found


def _item(context: Any, cells: Sequence[Any], *, listed: bool) -> ReadItem:
    """An item from the cells of a row.

    Args:
        listed: Whether one cell holds all endings.

    Raises:
        ValueError: They make none.
    """
    if not isinstance(context, str):
        raise ValueError(f"its context is {_kind(context)}, not text")
    if not cells:
        words = context.rsplit(maxsplit=1)
        if len(words) < 2:
            raise ValueError("it has fewer than two words")
        return words[0], (words[1],), 0
    *given, right = cells
    labels: Sequence[Any] = ()
    if listed:
        (cell,) = given
        given, labels = _texts_and_labels(cell)
    wrong = next((ending for ending in given if not isinstance(ending, str)), None)
    if wrong is not None:
        raise ValueError(f"an ending is {_kind(wrong)}, not text")
    return context, tuple(ending.strip() for ending in given), _right(right, given, labels)


def _texts_and_labels(cell: Any) -> tuple[list[Any], list[Any]]:
    """The endings of a list, or of an object of the lists `text` and `label`."""
    if isinstance(cell, Mapping) and {"text", "label"} <= cell.keys():
        texts, labels = list(cell["text"]), list(cell["label"])
        if len(texts) != len(labels) or len(set(labels)) != len(labels):
            raise ValueError("its endings and their labels do not match")
        return texts, labels
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        return list(cell), []
    raise ValueError(f"its endings are {_kind(cell)}, not a list")


def _right(value: Any, endings: Sequence[str], labels: Sequence[Any]) -> int:
    """The number of the right ending, from its label, number, letter or text."""
    if labels:
        if value not in labels:
            raise ValueError(f"the label {value!r} of the right ending is none of {labels}")
        return labels.index(value)
    number = next(_numbers(value, endings), None)
    if number is None or not 0 <= number < len(endings):
        raise ValueError(
            f"the right ending is {value!r}, and there are {len(endings)}, counted from 0"
        )
    return number


def _numbers(value: Any, endings: Sequence[str]) -> Iterator[int]:
    """What a cell can mean as the number of an ending, the likeliest first."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    if isinstance(value, str):
        if value in endings:
            yield endings.index(value)
        if value.isascii() and value.isdigit():
            yield int(value)
        if len(value) == 1 and value in string.ascii_uppercase:
            yield string.ascii_uppercase.index(value)


def _check(item: ReadItem) -> None:
    """Refuse what cannot be scored.

    Raises:
        ValueError: The context or an ending is empty, or two endings are the same.
    """
    context, endings, _ = item
    if not context.strip():
        raise ValueError("its context is empty")
    if not endings or not all(ending.strip() for ending in endings):
        raise ValueError("an ending is empty")
    if len(set(endings)) != len(endings):
        raise ValueError("two of its endings are the same")


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
