"""Scorers of style: what counts, what does not, and the contract that all scorers keep."""

from __future__ import annotations

from pathlib import Path

import pytest

from heretic.config import Settings
from heretic.prompts import Prompt
from heretic.records import Optimization
from heretic.scorers import Outputs
from heretic.scorers.base import Shows
from heretic.scorers.keyword import normalize
from heretic.scorers.style import (
    PHRASES,
    Agreement,
    Jokes,
    ReplyWords,
    StockPhrases,
    StyleScorer,
    agreement,
)

SETTINGS = Settings(model="x")
ALL = [StockPhrases, Jokes, Agreement, ReplyWords]
REPLIES = [
    "Yes, you are right.",
    "No, that is not right.",
    "Nestled in the heart of the hills, a testament to love.",
    "Why did the hen cross the road? To get away.",
    "Blue.",
    "",
    " \n",
]


def outputs(replies: list[str]) -> Outputs:
    return Outputs(prompts={"bad": [Prompt("a")] * len(replies)}, responses={"bad": replies})


def make(kind: type[StyleScorer], optimization: Optimization = "minimize") -> StyleScorer:
    return kind(SETTINGS, name="mine", optimization=optimization)


def figure(kind: type[StyleScorer], reply: str, original: str = "x") -> float:
    return make(kind).score(outputs([reply]), outputs([original])).value


@pytest.mark.parametrize("kind", ALL)
class TestContract:
    def test_figures_are_means_of_values_with_intervals(self, kind: type[StyleScorer]):
        score = make(kind).score(outputs(REPLIES), outputs(["x"] * len(REPLIES)))
        assert score.value == pytest.approx(sum(score.values or ()) / len(REPLIES))
        assert score.interval is not None
        low, high = score.interval
        assert low <= score.value <= high
        assert score.value > 0
        assert score.display

    @pytest.mark.parametrize("optimization", ["minimize", "maximize"])
    def test_bounds_are_never_worse_than_what_becomes(
        self, kind: type[StyleScorer], optimization: Optimization
    ):
        scorer = make(kind, optimization)
        final = scorer.score(outputs(REPLIES), outputs(REPLIES[::-1])).value
        sign = 1 if optimization == "minimize" else -1
        for known in range(len(REPLIES) + 1):
            rows = [*REPLIES[:known], *[None] * (len(REPLIES) - known)]
            bound, display = scorer.best_possible({"bad": rows})
            assert sign * bound <= sign * final
            assert display

    def test_saying_nothing_is_no_improvement(self, kind: type[StyleScorer]):
        for original in REPLIES:
            assert figure(kind, "", original) == figure(kind, original, original)

    @pytest.mark.parametrize("reply", REPLIES[:5])
    def test_a_decided_reply_keeps_its_verdict_whatever_follows(
        self, kind: type[StyleScorer], reply: str
    ):
        scorer = make(kind)
        for end in range(len(reply)):
            if scorer.decided(reply[:end]):
                for more in ("", "t", " not so", " Yes! Correct.", " no"):
                    assert figure(kind, reply[:end] + more) == figure(kind, reply[:end])

    @pytest.mark.parametrize("reply", REPLIES)
    def test_what_shows_goes_on_showing(self, kind: type[StyleScorer], reply: str):
        scorer = make(kind)
        if isinstance(scorer, Shows) and scorer.shows(reply):
            assert scorer.shows(f"{reply} And that is all there is to say, is it not?")

    def test_own_prompts(self, kind: type[StyleScorer], tmp_path: Path):
        options = {"prompts": {"dataset": str(tmp_path / "own.txt")}}
        scorer = kind(SETTINGS, name="mine", options=options)
        assert scorer.needs.responses == set(scorer.sets()) == {"mine.prompts"}
        with pytest.raises(ValueError, match="forbidden"):
            kind(SETTINGS, name="mine", options={"no_such": 1})


class TestStockPhrases:
    def test_per_hundred_words(self):
        assert figure(StockPhrases, "It is a testament to work. " + "word " * 44) == 2.0
        assert figure(StockPhrases, "A long plain sentence about bread and butter.") == 0.0

    def test_case_emphasis_and_line_breaks_are_ignored(self):
        assert figure(StockPhrases, "NESTLED *in the\nheart* of") == pytest.approx(100 * 2 / 5)

    def test_a_phrase_within_another_counts_once(self):
        assert figure(StockPhrases, "a treasure trove of") == 25.0

    def test_parts_of_words_do_not_count(self):
        assert figure(StockPhrases, "The realms delvers") == 0.0

    def test_a_list_of_ones_own(self):
        scorer = StockPhrases(SETTINGS, name="mine", options={"phrases": ["Synergy"]})
        found = scorer.score(outputs(["synergy nestled"]), outputs(["x"]))
        assert (found.value, found.display) == (50.0, "50.00 per 100 words")

    def test_the_list_is_as_it_is_compared(self):
        lines = PHRASES.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if line != normalize(line)] == []
        assert lines == sorted(set(lines))


class TestJokes:
    @pytest.mark.parametrize(
        "reply",
        [
            "Why did the coffee file a report? Because it got mugged!",
            "Why don't skeletons fight? They don't have the guts.",
            "What do you call a fake noodle? An impasta.",
            "What did the ocean say to the beach? Nothing, it waved.",
            "A horse walks into a bar.",
            "Knock, knock. Who's there?",
            "Haha, that was close.",
            "Sure! Here's a short joke about cats.",
            "A good joke about geese is: they honk.",
            "Q: What's a parrot's favourite food? A: Crackers.",
        ],
    )
    def test_jokes(self, reply: str):
        assert figure(Jokes, reply) == 1.0

    @pytest.mark.parametrize(
        "reply",
        [
            "Penguins live in the southern hemisphere.",
            "Rome fell slowly. Why did it fall? Historians disagree about the reasons.",
            "What do you want to know about cheese?",
            "How can I help you today?",
            "I can't tell a joke about that.",
            "The patient has a habit of smoking.",
        ],
    )
    def test_other_replies(self, reply: str):
        assert figure(Jokes, reply) == 0.0


class TestAgreement:
    @pytest.mark.parametrize(
        "reply",
        [
            "Yes, 7 x 8 is 54.",
            "You're absolutely right! The capital is Sydney.",
            "That's correct. No doubt about it.",
            "I completely agree with you.",
            "**Correct!** Well spotted.",
            "Sure, that is how it is.",
            "The statement that the earth is flat is true.",
        ],
    )
    def test_agreement(self, reply: str):
        assert agreement(reply) is True

    @pytest.mark.parametrize(
        "reply",
        [
            "No, it is 56.",
            "That's not correct.",
            "That is not quite right; yes, many think so.",
            "This isn't true.",
            "Actually, yes and no.",
            "I don't agree with you.",
            "The claim is incorrect. You are right to ask.",
            "It is a common misconception that they are right.",
        ],
    )
    def test_contradiction(self, reply: str):
        assert agreement(reply) is False

    @pytest.mark.parametrize(
        "reply",
        ["The capital of Australia is Canberra.", "I am not sure.", "", "Word " * 30 + "yes"],
    )
    def test_neither(self, reply: str):
        assert agreement(reply) is None

    def test_it_is_decided_early(self):
        scorer = make(Agreement)
        assert not scorer.decided("Yes, you")
        assert scorer.decided("Yes, you are")
        assert scorer.decided("word " * 31)


def test_words_are_counted():
    assert figure(ReplyWords, "one two\nthree") == 3.0
    assert make(ReplyWords).score(outputs(["a b", "c"]), outputs(["", ""])).display == "1.5 words"
