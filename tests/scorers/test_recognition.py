"""Recognition: the area, the ruler beside it, and when the figure is withheld."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import export_case, tiny
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from heretic.config import Settings
from heretic.errors import ScorerError
from heretic.evaluator.library import LibraryEvaluator, evaluation_prompts
from heretic.export.verify import agree
from heretic.model import Model
from heretic.model.words import word_tokens
from heretic.prompts import Prompt
from heretic.records import Score, Trial
from heretic.scorers import Outputs, check_scorers, load_scorers
from heretic.scorers.recognition import Recognition, _answers

QUESTION = "Is this about the sky? Answer yes or no.\n\n{prompt}"
WORDS = {"yes": (1, 2), "no": (3,)}
COUNT = 20


def settings(*specification: dict[str, Any], **options: Any) -> Settings:
    chosen = specification or ({"plugin": "recognition"},)
    return Settings(model="x", scorers=list(chosen), scorer={"recognition": options})


@pytest.fixture
def scorer() -> Recognition:
    (found,) = check_scorers(load_scorers(settings(question=QUESTION)))
    assert isinstance(found, Recognition)
    found.word_tokens = WORDS.__getitem__
    return found


def outputs(
    bad: float,
    good: float,
    *,
    spread: float = 0.5,
    mass: float = 0.9,
    lengths: int = 0,
    seed: int = 0,
) -> Outputs:
    """Answers with mean margins of these, and prompts of which bad ones are longer."""
    generator = torch.Generator().manual_seed(seed)
    sets, prompts = {}, {}
    for kind, margin in (("bad", bad), ("good", good)):
        margins = margin + spread * torch.randn(COUNT, generator=generator)
        yes = mass * margins.sigmoid()
        rows = torch.stack([*(yes * share for share in (0.3, 0.7)), mass - yes], dim=-1)
        rest = torch.full((COUNT, 2), (1 - mass) / 2)
        name = f"recognition.{kind}"
        sets[name] = torch.cat([rest[:, :1], rows, rest[:, 1:]], dim=-1).log()
        longer = lengths if kind == "bad" else 0
        prompts[name] = [Prompt("a" * (row % 7 + 1 + longer)) for row in range(COUNT)]
    return Outputs(prompts=prompts, logits=sets)


def score(scorer: Recognition, found: Outputs) -> Score:
    return scorer.score(found, found)


class TestFigure:
    def test_answers_that_differ_are_told_apart(self, scorer: Recognition) -> None:
        found = score(scorer, outputs(2.0, -2.0))
        assert (found.value, found.withheld) == (1.0, False)
        assert found.display == "1.000 (length 0.50)"
        assert found.interval is not None
        assert 0.8 < found.interval[0] < 1.0 == found.interval[1]
        assert len(found.values) == 2 * COUNT
        assert not found.is_count

    def test_every_spelling_counts(self) -> None:
        """Both tokens of yes together outweigh no; either alone does not."""
        logits = torch.tensor([[0.0, 0.3, 0.3, 0.4], [0.8, 0.1, 0.0, 0.1]]).log()
        margins, mass = _answers(logits, list(WORDS["yes"]), list(WORDS["no"]))
        assert margins == pytest.approx([math.log(1.5), 0.0])
        assert mass == pytest.approx(0.6)

    def test_a_shift_of_all_answers_changes_nothing(self, scorer: Recognition) -> None:
        """A model that says yes to everything more readily recognises as much as before."""
        first, second = (score(scorer, outputs(1 + by, -1 + by)) for by in (0.0, 3.0))
        assert second.value == pytest.approx(first.value)

    def test_it_is_reported_and_never_an_objective(self) -> None:
        (found,) = load_scorers(settings(question=QUESTION))
        assert found.optimization == "none"
        sought = settings({"plugin": "recognition", "optimization": "maximize"}, question=QUESTION)
        with pytest.raises(ScorerError, match="cannot be maximized"):
            check_scorers(load_scorers(sought))

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, "question: is not set"),
            ({"question": "  "}, "question: is not set"),
            ({"question": "Is it?"}, "must contain {prompt} once"),
            ({"question": "{prompt} or {prompt}?"}, "must contain {prompt} once"),
            ({"question": QUESTION, "place": 1}, "place"),
        ],
    )
    def test_a_question_is_needed(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ScorerError) as caught:
            load_scorers(settings(**options))
        assert said in str(caught.value)


class TestWithheld:
    def check(self, found: Score, reason: str) -> None:
        assert found.withheld
        assert math.isnan(found.value)
        assert (found.figure, found.interval, found.values) == (None, None, ())
        assert found.display.startswith("withheld: ")
        assert reason in found.display

    def test_where_length_does_as_well(self, scorer: Recognition) -> None:
        self.check(score(scorer, outputs(2.0, -2.0, lengths=9)), "length does as well (1.00)")
        self.check(score(scorer, outputs(2.0, -2.0, lengths=-9)), "length does as well (1.00)")

    def test_where_answers_say_nothing(self, scorer: Recognition) -> None:
        self.check(score(scorer, outputs(0.0, 0.0)), "length does as well (0.50)")
        self.check(score(scorer, outputs(-2.0, 2.0)), "length does as well (0.50)")

    def test_where_neither_word_is_said(self, scorer: Recognition) -> None:
        found = score(scorer, outputs(2.0, -2.0, mass=0.05))
        self.check(found, "yes and no have 5% of the first token")

    def test_where_one_set_alone_is_not_answered(self, scorer: Recognition) -> None:
        answered, silent = outputs(2.0, -2.0), outputs(2.0, -2.0, mass=0.01)
        name = "recognition.bad"
        mixed = Outputs(
            prompts=answered.prompts, logits={**answered.logits, name: silent.logits[name]}
        )
        self.check(score(scorer, mixed), "yes and no have 1% of the first token")

    def test_where_the_tokenizer_has_no_such_word(self, scorer: Recognition) -> None:
        scorer.word_tokens = lambda word: ()
        self.check(score(scorer, outputs(2.0, -2.0)), "no token for yes or no")

    def test_broken_logits_are_not_withheld_but_wrong(self, scorer: Recognition) -> None:
        found = outputs(2.0, -2.0)
        found.logits["recognition.bad"][0] = math.nan
        broken = score(scorer, found)
        assert not broken.withheld
        assert not broken.is_sound

    def test_it_is_no_number_on_disk_either(self, scorer: Recognition) -> None:
        found = score(scorer, outputs(0.0, 0.0))
        record = json.loads(json.dumps(found.to_dict(with_values=True), allow_nan=False))
        assert (record["value"], record["withheld"]) == (None, True)
        again = Score.from_dict(record)
        assert again.withheld
        assert again.to_dict() == found.to_dict()
        row = Trial(0, export_case.plan(), (found,)).to_dict()
        assert row["scores"] == {"recognition": None}

    @pytest.mark.parametrize("change", [{"value": 0.5}, {"optimization": "minimize"}])
    def test_a_record_that_contradicts_itself_is_refused(
        self, scorer: Recognition, change: dict[str, Any]
    ) -> None:
        record = score(scorer, outputs(0.0, 0.0)).to_dict()
        with pytest.raises(ValueError, match="withheld"):
            Score.from_dict({**record, **change})

    def test_it_disagrees_with_nothing(self, scorer: Recognition) -> None:
        told, withheld = score(scorer, outputs(2.0, -2.0)), score(scorer, outputs(0.0, 0.0))
        assert agree(withheld, withheld)
        assert agree(told, withheld)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base") / "Tiny-Base")


class TestModel:
    def of(self, base: Path, tmp_path: Path) -> Settings:
        scorers = [
            {"plugin": "refusal", "name": "refusals"},
            {"plugin": "kl_divergence"},
            {"plugin": "recognition"},
        ]
        sets: dict[str, Any] = export_case.prompt_files(tmp_path)
        sets["bad_evaluation_prompts"] = {**sets["bad_evaluation_prompts"], "prefix": "Say: "}
        options = {"recognition": {"question": QUESTION}}
        return export_case.settings(base, scorers=scorers, scorer=options, **sets)

    def test_the_question_is_around_each_evaluation_prompt(
        self, base: Path, tmp_path: Path
    ) -> None:
        of = self.of(base, tmp_path)
        prompts = evaluation_prompts(of, load_scorers(of))
        for kind, rows in (("bad", prompts.bad), ("good", prompts.good)):
            asked = prompts.more[f"recognition.{kind}"]
            assert [p.user for p in asked] == [QUESTION.replace("{prompt}", p.user) for p in rows]
        assert prompts.bad[0].user.startswith("Say: ")

    def test_a_withheld_figure_ends_no_evaluation(self, base: Path, tmp_path: Path) -> None:
        """A tokenizer of bytes has no token for either word."""
        of = self.of(base, tmp_path)
        model = Model(of)
        evaluator = LibraryEvaluator(of, model, export_case.directions())
        (found,) = evaluator.evaluate([export_case.plan()], rivals=[])
        assert [score.name for score in found] == ["refusals", "kl_divergence", "recognition"]
        assert not any(score.bound for score in found)
        assert found[2].display == "withheld: the tokenizer has no token for yes or no"

    def test_it_reads_the_model_s_first_token(self, base: Path, tmp_path: Path) -> None:
        """With letters as words, the figure is that of the logits after the question."""
        of = self.of(base, tmp_path)
        model = Model(of)
        evaluator = LibraryEvaluator(of, model, export_case.directions())
        letters = {"yes": (20, 21), "no": (30,)}
        read: dict[str, torch.Tensor] = {}
        prompts = evaluation_prompts(of, evaluator.scorers)
        for kind in ("bad", "good"):
            read[kind] = model.get_logits_batched(prompts.more[f"recognition.{kind}"])
        evaluator.scorers[2].word_tokens = letters.__getitem__
        outputs = evaluator.baseline_outputs
        for kind, logits in read.items():
            torch.testing.assert_close(outputs.logits[f"recognition.{kind}"], logits)


def test_the_tokens_of_a_word() -> None:
    texts = [
        "yes",
        "Yes",
        "\u2581yes",
        "YES",
        "yesterday",
        "eyes",
        "no",
        "\u2581No",
        "not",
        "[UNK]",
    ]
    raw = Tokenizer(models.WordLevel({text: i for i, text in enumerate(texts)}, unk_token="[UNK]"))
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    assert word_tokens(tokenizer, "yes") == (0, 1, 2, 3)
    assert word_tokens(tokenizer, "no") == (6, 7)
    assert word_tokens(tokenizer, "maybe") == ()
    assert word_tokens(tiny.tokenizer(), "yes") == ()
