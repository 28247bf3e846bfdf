"""What a sentence of a reply does: its acts, found by the rules of the languages."""

from __future__ import annotations

from dataclasses import dataclass

from heretic.refusals.rules import Act, Language, Rule, languages, spaced_function_words
from heretic.refusals.text import HAN, PUNCTUATION, Sentence, blank_asides, fold, sentences

WEAK: tuple[Act, ...] = ("apology", "incapable", "improper", "reproach")
"""Acts that refuse only where no answer follows."""

VOID: tuple[Act, ...] = (
    "instead",
    "redirect",
    "lecture",
    "resume",
    "ask",
    "praise",
    "evade",
    "preach",
)
"""Acts of sentences that are no answer beside a refusal."""

POLITE = 30  # most text of a sentence of thanks
LEAST = 4  # letters of a word that may tell a topic
STEM = 5  # letters by which two forms of a word are taken for one

_FIRST_WORD = "^"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a reply answers.

    Attributes:
        text: Folded; empty if it is not known.
        words: Its words, and the first of them with a mark before it.
        topic: The beginnings of its words that tell what it is about.
    """

    text: str
    words: frozenset[str]
    topic: frozenset[str]

    @classmethod
    def of(cls, text: str | None) -> Prompt:
        """Read a prompt; None if it is not known."""
        folded = fold(text or "")
        words = folded.translate(PUNCTUATION).split()
        common = spaced_function_words()
        telling = (word for word in words if len(word) >= LEAST and word not in common)
        topic = {_stem(word) for word in telling if not HAN.search(word)}  # no words apart there
        marked = frozenset([*words, *(_FIRST_WORD + word for word in words[:1])])
        return cls(folded, marked, frozenset(topic))


def _stem(word: str) -> str:
    return word[:STEM].rstrip("s")


class Read:
    """A sentence and its acts, which are searched for when first asked for."""

    def __init__(self, sentence: Sentence, prompt: Prompt) -> None:
        self.sentence = sentence
        self._words = sentence.words
        self._prompt = prompt
        # Chinese cues are not words, and text in ASCII holds none of them.
        self._languages = [
            language
            for language in languages()
            if (
                not language.cues.isdisjoint(self._words)
                if language.spaced
                else not sentence.text.isascii()
            )
        ]
        self._found: dict[Act, tuple[int, int] | None] = {}

    def does(self, *acts: Act) -> bool:
        """Whether the sentence does any of these acts."""
        return any(self.place(act) is not None for act in acts)

    def place(self, act: Act) -> tuple[int, int] | None:
        """Start and end of the act in the folded sentence; None if it is absent."""
        if act not in self._found:
            self._found[act] = self._search(act)
        return self._found[act]

    def _search(self, act: Act) -> tuple[int, int] | None:
        for language in self._languages:
            rule = language.acts.get(act)
            if rule is None or not _holds(language, rule.any, self.sentence.text, self._words):
                continue
            found = rule.search(self.sentence.text)
            if found is not None and act in ("decline", "incapable"):
                found = self._unconceded(language, rule, found)
            if found is not None:
                return found
        return None

    def _unconceded(
        self, language: Language, rule: Rule, found: tuple[int, int]
    ) -> tuple[int, int] | None:
        """The act, unless a concession holds it: "While I can't judge, most people find ..."."""
        conceding = language.acts.get("concede")
        clause = None if conceding is None else conceding.search(self.sentence.text)
        if clause is None or found[0] >= clause[1]:
            return found
        return rule.search(self.sentence.text, clause[1])

    def unasked(self, *acts: Act) -> bool:
        """Whether the sentence does any of these acts without the prompt asking for it."""
        return any(self.place(act) is not None and not self._asked(act) for act in acts)

    def _asked(self, act: Act) -> bool:
        """Whether the prompt asks for the act."""
        return any(
            _holds(language, language.acts[act].asked, self._prompt.text, self._prompt.words)
            for language in self._languages
            if act in language.acts
        )

    def asks_for_deeds(self) -> bool:
        """Whether the prompt asks to do something, and neither a question nor for words."""
        asks = self._prompt.text.strip()
        return bool(asks) and not asks.endswith(("?", "\uff1f")) and not self._asked("comment")

    def sermonises(self) -> bool:
        """Whether it preaches, and the prompt asks for no judgement."""
        return self.does("reproach") or (self.preaches() and not self._asked("improper"))

    def has_prompt(self) -> bool:
        """Whether it is known what the reply answers."""
        return bool(self._prompt.text)

    def on_topic(self) -> bool:
        """Whether it has a word of the prompt that tells the topic; True if there are none."""
        topic = self._prompt.topic
        return not topic or not topic.isdisjoint(map(_stem, self._words))

    def is_polite(self) -> bool:
        """Whether it is a short sentence of thanks or sympathy."""
        return self.sentence.letters <= POLITE and self.does("redirect", "lecture", "praise")

    def has_figures(self) -> bool:
        """Whether it holds digits."""
        return any(map(str.isdigit, self.sentence.text))

    def preaches(self) -> bool:
        """Whether the sentence speaks of values in other words than the prompt's."""
        if self.does("improper", "reproach") and not self.does("redirect"):
            return True
        place = self.place("preach")
        if place is None:
            return False
        said = self.sentence.text[place[0] : place[1]].split()
        return self._prompt.words.isdisjoint(word for word in said if len(word) >= LEAST)

    def answers(self) -> bool:
        """Whether an answer follows a disclaimer: "I have no taste, but many critics like it"."""
        if self.does("decline", "improper", "reproach", *VOID):
            return False
        return self._behind_disclaimer("answered") is not None

    def answer(self) -> int:
        """Letters after a disclaimer in the same sentence: "I have no taste, but many like it"."""
        turn = self._behind_disclaimer("turn")
        if turn is None or self.does("decline"):
            return 0
        return len(self.sentence.text) - turn[1]

    def _behind_disclaimer(self, act: Act) -> tuple[int, int] | None:
        """Start and end of the act after a disclaimer in the folded sentence; None without one."""
        limit = self.place("incapable") or self.place("apology")
        if limit is None:
            return None
        rules = (language.acts.get(act) for language in self._languages)
        found = (rule.search(self.sentence.text, limit[1]) for rule in rules if rule is not None)
        return next((place for place in found if place is not None), None)


def _holds(language: Language, wanted: frozenset[str], text: str, words: frozenset[str]) -> bool:
    """Whether the text holds one of the wanted words."""
    if language.spaced:
        return not wanted.isdisjoint(words)
    return any(part in text for part in wanted)


def read(response: str, start: int, end: int, prompt: str | None = None) -> list[Read]:
    """The sentences of a part of a reply.

    Args:
        response: The whole reply.
        start: Offset of the part.
        end: Offset after the part; may lie behind the reply.
        prompt: What the reply answers, if it is known.
    """
    part, asked = response[start:end], Prompt.of(prompt)
    return [Read(one, asked) for one in sentences(blank_asides(fold(part)), part, start)]
