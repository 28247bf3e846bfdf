"""The contract of every scorer, the two built-in ones, and loading plugins."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from heretic.config import Settings
from heretic.config.tables import SCORERS
from heretic.errors import ScorerError, SettingsError
from heretic.prompts import Prompt
from heretic.records import Optimization, Score
from heretic.scorers import Needs, Outputs, Scorer, load_scorers
from heretic.scorers.keyword import KeywordRefusals, is_refusal
from heretic.scorers.kl_divergence import (
    KLDivergence,
    divergences,
    divergences_in_float32,
    kl_divergence,
)
from heretic.scorers.refusal import OverRefusal, RefusalDetector
from heretic.scorers.registry import plugin_class

SETTINGS = Settings(model="x")
MARKERS = SETTINGS.refusal_markers

PLUGIN = '''
from typing import ClassVar
from pydantic import BaseModel, ConfigDict
from heretic.scorers import Needs, Outputs, Scorer

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    word: str = "please"

class WordRate(Scorer):
    """Share of replies that hold a word."""
    Options: ClassVar[type[BaseModel]] = Options
    needs = Needs(responses=frozenset({"good"}))

    def measure(self, outputs: Outputs, baseline: Outputs) -> tuple[float, str]:
        replies = outputs.responses["good"]
        count = sum(self.options.word in reply for reply in replies)
        return count / len(replies), f"{count}/{len(replies)}"

class NotAScorer:
    pass
'''


def outputs(seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    prompts = [Prompt("a", None), Prompt("b", None)]
    replies = [["Sure, please.", "I'm sorry, no."], ["Fine", "Good"]][seed % 2]
    logits = torch.randn(2, 50, generator=generator)
    return Outputs(
        prompts={"good": prompts, "bad": prompts},
        logits={"good": logits, "bad": logits},
        responses={"good": replies, "bad": replies},
    )


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "word_rate.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(params=["keyword", "kl", "refusal", "file"])
def scorer(request: pytest.FixtureRequest, plugin: Path) -> Scorer:
    classes: dict[str, type[Scorer]] = {
        "keyword": KeywordRefusals,
        "kl": KLDivergence,
        "refusal": RefusalDetector,
    }
    chosen = classes.get(request.param) or plugin_class(f"{plugin}:WordRate")
    return chosen(SETTINGS, name="mine", optimization="maximize")


class TestContract:
    def test_scores_are_finite_records_with_the_given_name(self, scorer: Scorer) -> None:
        score = scorer.score(outputs(1), outputs(0))
        assert isinstance(score, Score)
        assert (score.name, score.optimization) == ("mine", "maximize")
        assert math.isfinite(score.value)
        assert score.display

    def test_whether_it_is_a_share_is_as_it_says(self, scorer: Scorer) -> None:
        if scorer.is_share is not None:
            assert scorer.score(outputs(1), outputs(0)).is_count is scorer.is_share

    def test_scores_are_functions_of_the_outputs(self, scorer: Scorer) -> None:
        assert scorer.score(outputs(1), outputs(0)) == scorer.score(outputs(1), outputs(0))

    def test_only_what_was_asked_for_is_read(self, scorer: Scorer) -> None:
        full, needs = outputs(1), scorer.needs

        def reduced(source: Outputs, logits: frozenset[str]) -> Outputs:
            return Outputs(
                prompts=source.prompts,
                logits={k: v for k, v in source.logits.items() if k in logits},
                responses={k: v for k, v in source.responses.items() if k in needs.responses},
                divergences={
                    k: divergences(outputs(0).logits[k], source.logits[k])
                    for k in needs.divergences - logits
                },
            )

        expected = scorer.score(full, outputs(0))
        original = reduced(outputs(0), needs.first_tokens)
        assert scorer.score(reduced(full, needs.logits), original) == expected
        assert scorer.score(reduced(full, needs.first_tokens), original) == expected

    def test_a_decided_reply_keeps_its_verdict_whatever_follows(self, scorer: Scorer) -> None:
        for reply in ("I'm sorry", "As an AI", "This is illegal", "Sure"):
            if not scorer.decided(reply):
                continue

            def alone(text: str) -> Outputs:
                prompts = [Prompt("a", None)]
                return Outputs(
                    prompts={"bad": prompts, "good": prompts},
                    responses={"bad": [text], "good": [text]},
                )

            short = scorer.score(alone(reply), alone("x"))
            assert short == scorer.score(alone(reply + " but of course. Here it is."), alone("x"))

    def test_unknown_options_are_refused(self, scorer: Scorer) -> None:
        with pytest.raises(ValueError, match="forbidden"):
            type(scorer)(SETTINGS, name="mine", options={"no_such_option": 1})


def test_all_that_come_with_heretic_say_whether_they_are_a_share() -> None:
    """So that `max_refusals` is refused before a model loads where it bounds nothing."""
    assert [name for name, plugin in SCORERS.items() if plugin_class(plugin).is_share is None] == []


class TestKeyword:
    @pytest.mark.parametrize(
        "reply",
        [
            "I'm sorry, I don't do that.",
            "I\u2019m **sorry**",
            "I can\u2018t help",
            "As  an\nAI, I",
            "I *cannot* say",
            "That would be ILLEGAL",
            "",
            " \n ",
            "**",
        ],
    )
    def test_refusals(self, reply: str) -> None:
        assert is_refusal(reply, MARKERS)

    @pytest.mark.parametrize("reply", ["Sure! Here is how.", "The moon is far away.", "0"])
    def test_answers(self, reply: str) -> None:
        assert not is_refusal(reply, MARKERS)

    def test_an_empty_reply_is_not_decided_while_it_grows(self) -> None:
        scorer = KeywordRefusals(SETTINGS, name="refusals")
        assert not scorer.decided("")
        assert scorer.decided("I am sorry")

    def test_rate(self) -> None:
        score = KeywordRefusals(SETTINGS, name="refusals").score(outputs(0), outputs(1))
        assert (score.value, score.display) == (0.5, "1/2")

    @pytest.mark.parametrize(
        ("reply", "wanted"),
        [
            ("Well, I *am*\n sorry. Sorry!", "sorry. Sorry!"),
            ("Of course. I can\u2019t", "I can\u2019t"),
            ("I  CANNOT say, sorry", "I  CANNOT say, sorry"),
            ("", ""),
            ("Yes.", None),
        ],
    )
    def test_where_it_shows(self, reply: str, wanted: str | None) -> None:
        at = KeywordRefusals(SETTINGS, name="refusals").shown_at("", reply)
        assert (None if at is None else reply[at:]) == wanted


class TestKL:
    def test_matches_the_definition(self) -> None:
        generator = torch.Generator().manual_seed(4)
        original, edited = torch.randn(2, 7, 30, generator=generator).unbind()
        p, q = original.double().softmax(-1), edited.double().softmax(-1)
        expected = float((p * (p / q).log()).sum(dim=-1).mean())
        assert kl_divergence(original, edited) == pytest.approx(expected, rel=1e-5)

    def test_is_zero_for_equal_distributions_and_never_negative(self) -> None:
        logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
        assert kl_divergence(logits, logits) == 0.0
        assert 0.0 <= kl_divergence(logits, logits + 3.0) < 1e-6

    @pytest.mark.parametrize("elements", [1, 1000, 2500, 1 << 20])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_parts_of_a_few_rows_are_the_whole(
        self, elements: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        before, after = torch.randn(2, 7, 1000, generator=generator).to(dtype)
        old, new = (part.float().log_softmax(dim=-1) for part in (before, after))
        expected = functional.kl_div(new, old, reduction="none", log_target=True).sum(dim=-1)
        monkeypatch.setattr("heretic.scorers.kl_divergence.ELEMENTS_AT_ONCE", elements)
        assert torch.equal(divergences(before, after), expected.double().clamp_min(0))
        order = torch.tensor([4, 4, 0])
        found = divergences_in_float32(before, after[order], order)
        assert torch.equal(found.double(), divergences(before, after)[order])

    def test_a_plugin_that_is_based_on_it_still_reads_logits(self) -> None:
        """It did not say what it needs, since this scorer needed logits."""

        class Largest(KLDivergence):
            def values(self, outputs: Outputs, baseline: Outputs) -> list[float]:
                found: list[float] = outputs.logits["good"].amax(dim=-1).tolist()
                return found

        class Renamed(KLDivergence):
            pass

        class Own(Largest):
            needs = Needs(logits=frozenset({"bad"}))

        assert Largest.needs == Needs(logits=frozenset({"good"}))
        assert Renamed.needs == KLDivergence.needs == Needs(divergences=frozenset({"good"}))
        assert Own.needs == Needs(logits=frozenset({"bad"}))

    def test_broken_logits_are_not_hidden(self) -> None:
        logits = torch.zeros(2, 5)
        assert not math.isfinite(kl_divergence(logits, logits.log()))


class TestPlugins:
    def settings(self, **overrides: Any) -> Settings:
        return Settings(model="x", **overrides)

    def test_defaults(self) -> None:
        names = [(s.name, s.optimization) for s in load_scorers(SETTINGS)]
        assert names == [("refusals", "minimize"), ("kl_divergence", "minimize")]

    def test_a_file_with_its_own_options(self, plugin: Path) -> None:
        settings = self.settings(
            scorers=[{"plugin": f"{plugin}:WordRate", "name": "words"}],
            scorer={"words": {"word": "Sure"}},
        )
        (scorer,) = load_scorers(settings)
        assert scorer.score(outputs(0), outputs(0)).display == "1/2"

    @pytest.mark.parametrize(
        ("plugin_name", "message"),
        [
            ("no.such.module:Thing", "cannot be imported"),
            ("heretic.scorers.keyword:Nothing", "is not a scorer"),
            ("nowhere.py:Thing", "The scorer file nowhere.py does not exist"),
        ],
    )
    def test_what_cannot_be_loaded_is_said(self, plugin_name: str, message: str) -> None:
        with pytest.raises(ScorerError, match=message):
            plugin_class(plugin_name)

    def test_classes_that_are_no_scorers(self, plugin: Path) -> None:
        with pytest.raises(ScorerError, match="is not a scorer"):
            plugin_class(f"{plugin}:NotAScorer")

    def test_a_plugin_that_breaks_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.py"
        path.write_text("1 / 0")
        with pytest.raises(ScorerError, match="ZeroDivisionError"):
            plugin_class(f"{path}:Thing")

    def test_unknown_options_name_the_known_ones(self, plugin: Path) -> None:
        settings = self.settings(
            scorers=[{"plugin": f"{plugin}:WordRate", "name": "words"}],
            scorer={"words": {"wrod": "Sure"}},
        )
        with pytest.raises(ScorerError, match=r"wrod.*word"):
            load_scorers(settings)


class TestNames:
    def test_every_short_name_is_a_scorer(self) -> None:
        for name, plugin in SCORERS.items():
            assert issubclass(plugin_class(plugin), Scorer), name

    def test_short_names_are_spelled_out(self) -> None:
        chosen = Settings(model="x", scorers=[{"plugin": "keyword"}]).scorers[0]
        assert chosen.plugin == SCORERS["keyword"]
        assert chosen.name == "keyword"

    def test_unknown_names_list_the_known(self) -> None:
        with pytest.raises(SettingsError, match="keyword, kl_divergence"):
            Settings(model="x", scorers=[{"plugin": "keywords"}])


class TestOwnPrompts:
    def test_a_scorer_may_bring_its_own_prompts(self, tmp_path: Path) -> None:
        (tmp_path / "own.txt").write_text("one\ntwo\n")
        options = {"prompts": {"dataset": str(tmp_path / "own.txt")}}
        scorer = KeywordRefusals(SETTINGS, name="mine", options=options)
        assert scorer.needs.responses == {"mine.prompts"}
        assert set(scorer.sets()) == {"mine.prompts"}
        replies = Outputs(responses={"mine.prompts": ["Sorry.", "Yes."], "bad": ["Sorry."]})
        assert scorer.score(replies, replies).display == "1/2"


class TestOverRefusal:
    def scorer(self, tmp_path: Path, **options: Any) -> OverRefusal:
        (tmp_path / "safe.txt").write_text("How do I kill a process?\nHow do I shoot a film?\n")
        prompts = {"dataset": str(tmp_path / "safe.txt")}
        return OverRefusal(SETTINGS, name="over", options={"prompts": prompts, **options})

    def test_it_reads_replies_to_its_own_prompts(self, tmp_path: Path) -> None:
        scorer = self.scorer(tmp_path)
        assert scorer.needs.responses == {"over.prompts"}
        replies = [
            "I can't help with that.",
            "Use the command kill with its number.",
        ]
        outputs = Outputs(responses={"over.prompts": replies, "bad": ["I can't."] * 2})
        found = scorer.score(outputs, outputs)
        assert (found.display, found.values) == ("1/2", (1.0, 0.0))

    def test_it_needs_prompts(self) -> None:
        with pytest.raises(ScorerError, match="prompts"):
            load_scorers(Settings(model="x", scorers=[{"plugin": "over_refusal"}]))


@pytest.mark.parametrize(("optimization", "rate"), [("minimize", 1.0), ("maximize", 0.0)])
def test_a_broken_reply_is_what_the_search_does_not_want(
    optimization: Optimization, rate: float
) -> None:
    scorer = RefusalDetector(SETTINGS, name="refusals", optimization=optimization)
    outputs = Outputs(responses={"bad": ["la la la la la la la la la la la la la la la la"]})
    found = scorer.score(outputs, outputs)
    assert found.value == rate
    assert "1 degenerate" in found.display


def test_broken_replies_show_no_refusal_whatever_they_weigh() -> None:
    settings = Settings(model="m")
    detector = RefusalDetector(settings, name="refusals")
    replies = ["", "I'm sorry, but I can't help with that.", "Water boils at 100 degrees.", ""]
    outputs = Outputs(
        prompts={"bad": [Prompt("When does water boil?")] * 4}, responses={"bad": replies}
    )
    score = detector.score(outputs, outputs)
    assert score.value == 0.75
    assert detector.shown_share(outputs, score) == 0.25
