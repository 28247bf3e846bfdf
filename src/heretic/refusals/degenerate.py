"""Degenerate replies: empty, looping, noise, or in a language that was not asked for.

The limits are tolerant: a short, odd or cut-off reply is not broken.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from itertools import pairwise

from heretic.refusals.rules import languages, spaced_function_words
from heretic.refusals.text import PUNCTUATION, fold

PERIOD = 160  # characters; longest passage whose immediate repetition is looked for
LOOP = 110  # characters; a loop with all its rounds is at least this long
ROUNDS = 4  # a loop repeats its passage at least this often
COUNTED = 20  # lines that differ in one number alone are a loop even if the last is whole
LINES = 4  # a repeated line or sentence occurs at least this often
RUN = 10  # words of a phrase of few words that a reply repeats until it ends
PHRASE = 3  # words of such a phrase at most; a longer one is found by its characters
TIMES = 5  # such a phrase is repeated at least this often
TAIL = 200  # characters that hold the last words
PROSE = 12  # words of a line that is a sentence rather than an item of a list
BEGIN = 300  # characters that show whether a reply is written in a known language
SCATTERED = 20  # words that are enough to see that a text has no grammar

# Letters, digits, and signs with a meaning of their own, such as faces and arrows.
_SAYS = re.compile("[^\\W_]|[\u2190-\u2fff\U0001f000-\U0001ffff]")
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf\u0192\u201a]|\u00e2\u20ac|\u00e2\u0080")
_UNPRINTED = re.compile("[\x00-\x1f\ue000-\uf8ff\ufffd]")
_WORD = re.compile(r"[^\W\d_]+")
_SPOKEN = re.compile(r"[^\W\d_]{3}")
_NUMBER = re.compile(r"\d+")
_SCRIPTS = (
    ("latin", "\u0041", "\u024f"),
    ("greek", "\u0370", "\u03ff"),
    ("cyrillic", "\u0400", "\u04ff"),
    ("hebrew", "\u0590", "\u05ff"),
    ("arabic", "\u0600", "\u06ff"),
    ("indic", "\u0900", "\u0dff"),
    ("thai", "\u0e00", "\u0e7f"),
    ("greek", "\u1f00", "\u1fff"),
    ("kana", "\u3040", "\u30ff"),
    ("han", "\u4e00", "\u9fff"),
    ("hangul", "\uac00", "\ud7af"),
)
# No English sentence goes on like this; "a and b" may be about letters.
_AFTER = "of and or is are was were to the a an in it they he she that with from be"
_NEVER = frozenset(
    [
        *((article, word) for article in ("the", "an") for word in _AFTER.split()),
        *(("a", word) for word in ["the", "of", "a", "an", "are", "in", "with", "be"]),
        *(("of", word) for word in ["of", "and", "is", "are", "was", "were", "to", "or"]),
    ]
)
_VOWEL = re.compile("[aeiouy\u00e0-\u024f]")
_CASE = re.compile("[a-z][A-Z]")
_NAMES = re.compile(
    r"\b(?:english|german|french|spanish|chinese|mandarin|japanese|korean|russian|arabic|italian|latin|greek|portuguese"
    r"|englisch\w*|deutsch\w*|französisch\w*|spanisch\w*|chinesisch\w*|anglais\w*|allemand\w*|français\w*|espagnol\w*"
    r"|chinois\w*|inglés|alemán|francés|español|chino|translat\w*|übersetz\w*|tradu\w*)\b|英[语文]|中文|汉语|德[语文]|法[语文]|翻译"
)


def broken(response: str) -> tuple[int, int] | None:
    """Start and end of the broken part of a reply (empty, looping or noise); None without one."""
    if not response.strip() or not _SAYS.search(response):
        return (0, len(response)) if not _is_drawing(response) else None
    prose = _FENCED.sub(lambda found: " " * len(found[0]), response)
    if not prose.strip():
        return None
    return _loop(prose) or _counts_on(prose) or _stuck(prose) or _repeated(prose) or _noise(prose)


def _is_drawing(response: str) -> bool:
    """Whether a text is a short drawing of marks (rule, table, face), not only punctuation."""
    marks = set(response.split() and "".join(response.split()))
    return bool(marks - set(".!?,\u2026\u3002\uff01\uff1f\uff0c")) and len(response) <= LOOP


def _loop(text: str) -> tuple[int, int] | None:
    """Start and end of a passage that the reply repeats until it ends."""
    body = text.rstrip()
    for period in range(1, min(PERIOD, len(body) // ROUNDS) + 1):
        unit = body[-period:]
        if body[-2 * period : -period] != unit:
            continue
        start = len(body) - 2 * period
        while start >= period and body[start - period : start] == unit:
            start -= period
        length = len(body) - start
        meaning = any(c.isalnum() for c in unit) or "!" in unit or "?" in unit
        if meaning and length >= LOOP and length >= ROUNDS * period:
            return start, len(body)
    return None


def _counts_on(text: str) -> tuple[int, int] | None:
    """Start and end of lines that the reply repeats until it ends, each with its own number."""
    masked = _NUMBER.sub("0", text).rstrip()
    lines = [line.rstrip() for line in masked.split("\n")]  # the last has lost what ends others
    whole, last = lines[-2] if len(lines) > 1 else "", lines[-1]
    is_cut = last != whole and whole.startswith(last)
    if lines.count(whole) < (ROUNDS if is_cut else COUNTED) or not _SPOKEN.search(whole):
        return None
    # A table that was asked for says something by its numbers: a line holds more than its own.
    if len(set(_NUMBER.findall(text.rstrip().split("\n")[-2]))) > 1:
        return None
    loop = _loop(masked)
    if loop is None:
        return None
    start = len(masked) - len(masked[loop[0] :].lstrip())  # not the end of the line before
    before = text.split("\n")[: masked.count("\n", 0, start)]
    return sum(len(line) + 1 for line in before), len(text.rstrip())


def _stuck(text: str) -> tuple[int, int] | None:
    """Start and end of a phrase of one to three words that the reply repeats until it ends."""
    if not _may_be_stuck(text[-TAIL:].split()):
        return None
    places = [found.span() for found in re.finditer(r"\S+", text)]
    words = [_bare(text[start:end]) for start, end in places]
    for last in (len(words), len(words) - 1):  # the last word may be cut off
        for period in range(1, PHRASE + 1):
            first = _run(words[:last], period)
            unit = words[first : first + period]
            says = all(map(str.isalpha, unit)) and any(len(word) > 1 for word in unit)
            if says and last - first >= max(RUN, TIMES * period):
                return places[first][0], places[-1][1]
    return None


def _may_be_stuck(words: list[str]) -> bool:
    """Whether few of the last words differ; asked first, since nearly every reply is in order."""
    return len(words) >= RUN and len({_bare(word) for word in words[-RUN:]}) <= PHRASE + 1


def _bare(word: str) -> str:
    return word.lower().translate(PUNCTUATION).strip(" *_-")


def _run(words: list[str], period: int) -> int:
    """The index from which words are repeated, at this period, to the end."""
    first = len(words) - period
    while first > 0 and words[first - 1] == words[first - 1 + period]:
        first -= 1
    return max(first, 0)


def _repeated(text: str) -> tuple[int, int] | None:
    """Start and end of repetitive text: repeated sentences or lines, or few different words."""
    if len(text) >= 400:
        data = text.encode("utf-8")
        if len(zlib.compress(data, 6)) < 0.13 * len(data):
            return 0, len(text)
    parts = [
        part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+|(?<=[\u3002\uff01\uff1f])", text)
    ]
    counts = Counter(part for part in parts if len(part) > 8)
    if counts:
        most, times = counts.most_common(1)[0]
        if times >= LINES and sum(n * len(p) for p, n in counts.items() if n >= LINES) > 0.5 * len(
            text
        ):
            start = text.index(most)
            return start, start + len(most)
    words = [word.lower() for word in _WORD.findall(text)]
    if len(words) >= 16 and len(set(words)) <= 2:
        return 0, len(text)
    if len(words) >= 40 and len(set(words)) < 0.25 * min(len(words), 120):
        return 0, len(text)
    return None


def _noise(text: str) -> tuple[int, int] | None:
    """Start and end of text whose characters or words fit no language."""
    whole = (0, len(text))
    if _unreadable("".join(text.split())):
        return whole
    words = _WORD.findall(text)
    if len(words) < 12:
        return None
    shares = scripts(text)
    if len([share for share in shares.values() if share >= 0.02]) >= 3 and _mixed(words, shares):
        return whole
    if shares.get("latin", 0) > 0.8 and _odd(words):
        return whole
    if len(words) >= SCATTERED:
        pairs = pairwise(text.split())
        if sum(map(_NEVER.__contains__, pairs)) > 0.07 * len(words):
            return whole
    return whole if len(words) >= 30 and _salad(text) else None


def _unreadable(solid: str) -> bool:
    """Whether characters cannot be shown, or come from bytes read in the wrong encoding."""
    bad, twisted = len(_UNPRINTED.findall(solid)), len(_MOJIBAKE.findall(solid))
    return (bad >= 4 and bad > 0.1 * len(solid)) or (twisted >= 5 and twisted > 0.03 * len(solid))


def _mixed(words: list[str], shares: dict[str, float]) -> bool:
    """Whether scripts change within sentences, other than in Japanese or Korean."""
    if {"kana", "hangul"} & set(shares):
        return len(shares) >= 4
    kinds = [_script(word[0]) for word in words]
    changes = sum(a != b for a, b in pairwise(kinds))
    return changes > 0.25 * len(words)


def _odd(words: list[str]) -> bool:
    """Whether most words lack vowels, or many are joined without a space."""
    latin = Counter(word for word in words if word.isascii() and len(word) >= 4)
    total = latin.total()
    if total < 8:
        return False
    mute = sum(times for word, times in latin.items() if not _VOWEL.search(word.lower()))
    glued = sum(times for word, times in latin.items() if _CASE.search(word))
    return mute > 0.5 * total or (glued > 0.3 * total and len(words) >= 20)


def _salad(text: str) -> bool:
    """Whether nearly all words are function words, so that the text has no content."""
    words = text.lower().translate(PUNCTUATION).split()
    for language in languages():
        if language.spaced:
            function_words = sum(map(language.function_words.__contains__, words))
            if function_words > 0.75 * len(words):
                return True
    return False


def scattered(response: str, prompt: str) -> bool:
    """Whether a reply strings words together that no language joins.

    Sentences hold function words. A reply to a prompt in a known language, in sentences that hold
    next to none of any known language, is word salad, or in another language.
    """
    if _function_words(response[:BEGIN]) >= 0.15:  # as in nearly every reply
        return False
    if _function_words(prompt) < 0.15 or _NAMES.search(fold(prompt)):
        return False
    prose = _FENCED.sub(" ", response)
    lines = [line for line in prose.splitlines() if _is_prose(line)]
    text = " ".join(lines)
    words = _WORD.findall(text)
    return (
        len(words) >= SCATTERED
        and scripts(text).get("latin", 0) > 0.95
        and _function_words(text) < 0.1
    )


def _is_prose(line: str) -> bool:
    """Whether a line is a sentence, not a list, a table, a title or a formula."""
    words = line.split()
    marks = sum(line.count(mark) for mark in ",;:|/=*#0123456789")
    capitals = sum(word[:1].isupper() for word in words)
    return len(words) >= PROSE and marks < 0.25 * len(words) and capitals < 0.5 * len(words)


def _function_words(text: str) -> float:
    """Share of the words that are function words in any of the known languages."""
    words = fold(text).translate(PUNCTUATION).split()
    return sum(map(spaced_function_words().__contains__, words)) / max(len(words), 1)


def _script(letter: str) -> str | None:
    return next((name for name, first, last in _SCRIPTS if first <= letter <= last), None)


def scripts(text: str) -> dict[str, float]:
    """Share of each known script among the letters of all known scripts."""
    if text.isascii():
        return {"latin": 1.0}
    counts: Counter[str] = Counter()
    for character, times in Counter(text).items():
        script = _script(character) if character.isalpha() else None
        if script is not None:
            counts[script] += times
    total = counts.total()
    return {name: count / total for name, count in counts.items()}


def language_of(text: str) -> str | None:
    """The text's language (ISO 639-1) or script; None where it is uncertain."""
    shares = scripts(text)
    for name in ("kana", "hangul"):
        if shares.get(name, 0) > 0.1:
            return name
    for name, share in shares.items():
        if name != "latin" and share > 0.6:
            return name
    if shares.get("latin", 0) < 0.95:
        return None
    words = fold(text).translate(PUNCTUATION).split()
    counts = {
        language.code: sum(map(language.function_words.__contains__, words))
        for language in languages()
        if language.spaced
    }
    (best, most), (_, second) = sorted(counts.items(), key=lambda pair: -pair[1])[:2]
    if most >= 3 and most >= 0.15 * len(words) and most > second + 1 and most >= 1.5 * second:
        return best
    return None


def wrong_language(response: str, prompt: str) -> bool:
    """Whether a reply is certainly not in its prompt's language; False if the prompt names one."""
    if len(response) < 30 or _NAMES.search(fold(prompt)):
        return False
    asked = language_of(prompt)
    if asked is None:
        return False
    spoken = language_of(_FENCED.sub(" ", response)[:1500])
    return spoken is not None and spoken != asked and len(_WORD.findall(response)) >= 5
