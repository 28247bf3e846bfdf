"""Prepare a reply for the rules: fold to lower case, blank out asides, cut into sentences.

Every step keeps the text's length, so that positions are those of the reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FOLD = str.maketrans(
    {
        "\u2019": "'",
        "\u2018": "'",
        "\u02bc": "'",
        "\u00b4": "'",
        "*": " ",
        "_": " ",
        "#": " ",
        "\u00a0": " ",
        "\u202f": " ",
        "\u2014": ",",
        "\u2013": ",",
    }
)
# Asides, which the reply does not say itself: code, quotations in one line, block quotations.
_ASIDES = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]{1,300}`"
    r'|(?<![\w"])"[^"\n]{1,400}"(?!\w)'
    r"|\u201c[^\u201c\u201d\n]{1,400}\u201d|\u201e[^\u201c\u201d\n]{1,400}[\u201c\u201d]"
    r"|\u00ab[^\u00ab\u00bb\n]{1,400}\u00bb|\u300c[^\u300d\n]{1,400}\u300d"
    r"|^[ \t]*>[^\n]*",
    re.DOTALL | re.MULTILINE,
)
_OPEN_QUOTE = re.compile(r'["\u201c\u201e\u00ab\u300c`]')
_END = re.compile(
    r"[.!?\u2026]+[\"'\u201d\u00bb)\]]*(?=\s)|[\u3002\uff01\uff1f\uff1b]+[\u201d\u300d]?|\n{2,}|\n(?![a-z])"
)
PUNCTUATION = str.maketrans(dict.fromkeys(',.;:!?"()[]{}/\\\u201c\u201d\u2026<>|=+~^', " "))
_THINK_OPEN = re.compile(r"\s*<(think|thinking|reasoning|thought)>", re.IGNORECASE)
_THINK_TAG = re.compile(r"<(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_THINK_CLOSE = re.compile(r"</(?:think|thinking|reasoning|thought)>\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, or a line without a full stop whose next line does not begin in lower case.

    Attributes:
        text: Folded, single spaces, asides blanked out.
        start: Offset of its first character in the reply.
        end: Offset after its last character.
        complete: Whether text follows, so that more text cannot change the sentence.
        item: Whether it belongs to a list item.
        letters: Amount of text: characters without white space, including asides; a Chinese,
            Japanese or Korean character counts as three.
    """

    text: str
    start: int
    end: int
    complete: bool
    item: bool
    letters: int

    @property
    def words(self) -> frozenset[str]:
        """Its words, without punctuation."""
        return frozenset(self.text.translate(PUNCTUATION).split())


def fold(text: str) -> str:
    """The text in lower case, with plain apostrophes and without emphasis; the same length."""
    lower = text.lower()
    if len(lower) != len(text):  # `lower` turns a few capitals into two characters
        lower = "".join(one if len(one := c.lower()) == 1 else c for c in text)
    return lower.translate(_FOLD)


def answer_start(text: str) -> tuple[int, bool]:
    """Offset where the reply begins after its reasoning, and whether the reasoning has ended.

    Where the chat template opens the reasoning, the text has only the closing tag.
    """
    opening = _THINK_OPEN.match(text)
    closing = _THINK_CLOSE.search(text)
    return (closing.end(), True) if closing else (0, opening is None)


def opens_reasoning(prompt: str) -> bool:
    """Whether a prompt, as the model gets it, ends within a block of reasoning."""
    opened = [found.start() for found in _THINK_TAG.finditer(prompt)]
    closed = [found.start() for found in _THINK_CLOSE.finditer(prompt)]
    return max(opened, default=-1) > max(closed, default=-1)


def unopened_reasoning(text: str) -> int:
    """Length of the text before a closing tag without an opening one; 0 without such a tag."""
    closing = None if _THINK_OPEN.match(text) else _THINK_CLOSE.search(text)
    return closing.start() if closing else 0


def blank_asides(text: str) -> str:
    """Replace code and quotations by spaces, except a quotation that is the whole reply."""
    if not _OPEN_QUOTE.search(text) and "~~~" not in text and ">" not in text:
        return text
    whole = text.strip()

    def blank(found: re.Match[str]) -> str:
        aside = found[0]
        if aside == whole and aside[0] not in "`~":
            return aside
        return re.sub(r"[^\n]", " ", aside)

    return _ASIDES.sub(blank, text)


def has_open_quote(line: str) -> bool:
    """Whether a quotation begins in this line and does not end; asides must be blanked out."""
    return _OPEN_QUOTE.search(line) is not None


# A Chinese, Japanese or Korean character says about as much as three letters.
HAN = re.compile("[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
_ITEM = re.compile(r"\s*(?:[-\u2022\u00b7]|\d{1,2}[.)\u3001]|[a-z][.)])\s*")


def sentences(text: str, original: str, offset: int = 0) -> Iterator[Sentence]:
    """Cut folded text with blanked asides.

    Args:
        text: The folded text.
        original: The same text before folding, same length; used to count letters in asides.
        offset: Position of both in the reply; added to all positions.
    """
    start, line_start, item = 0, True, False
    ends = [(found.end(), "\n" in found[0]) for found in _END.finditer(text)]
    if not ends or ends[-1][0] < len(text):
        ends.append((len(text), False))
    for end, breaks in ends:
        part = text[start:end]
        said = original[start:end].split()
        if line_start:
            mark = _ITEM.match(part)
            item = mark is not None
            if mark is not None and mark.end() == len(part) and not breaks:
                # "1." alone is not a sentence: it belongs to the text after it.
                start, line_start = end, False
                continue
        line_start = breaks
        if said:
            lead = len(part) - len(part.lstrip())
            trail = len(part.rstrip()) or len(part)
            yield Sentence(
                " ".join(part.split()),
                offset + (start + lead if part.strip() else start),
                offset + start + trail,
                end < len(text),
                item,
                sum(map(len, said)) + 2 * len(HAN.findall("".join(said))),
            )
        start = end
