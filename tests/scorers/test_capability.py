"""Capability: the items that ship, and that what is counted is what the model itself finds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import tiny
from torch.nn import functional

from heretic.config import Settings
from heretic.config.tables import SCORERS
from heretic.errors import ScorerError
from heretic.evaluator import EvaluationPrompts, Evaluator
from heretic.evaluator.baseline import BaselineFile
from heretic.model import AbliterationParameters, Model
from heretic.model.outputs import Endings
from heretic.pipeline.identity import fingerprint
from heretic.prompts import Item, Prompt, PromptSets, load
from heretic.records import Plan, Trial
from heretic.records.statistics import difference_text
from heretic.scorers import Outputs, check_scorers, load_scorers
from heretic.scorers.capability import ITEMS, OWN_ITEMS, Capability, chance_level

ROWS = [json.loads(line) for line in ITEMS.read_text(encoding="utf-8").splitlines()]
CHOICES = [row for row in ROWS if row["kind"] != "last word"]


class TestItems:
    """The set that comes with Heretic."""

    def test_there_are_enough_of_every_kind(self) -> None:
        kinds = Counter(row["kind"] for row in ROWS)
        assert set(kinds) == {
            "objects", "sense", "science", "arithmetic", "language", "facts", "last word"
        }  # fmt: skip
        assert len(ROWS) >= 300
        assert min(kinds.values()) >= 30

    def test_they_are_read_by_default(self) -> None:
        items = load(OWN_ITEMS)
        assert len(items) == len(ROWS)
        for item, row in zip(items, ROWS, strict=True):
            assert item == Item(row["context"], None, None, tuple(row["endings"]), row["right"])

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row["context"][:40])
    def test_each_is_well_formed(self, row: dict[str, Any]) -> None:
        endings = row["endings"]
        assert set(row) == {"kind", "context", "endings", "right"}
        assert len(endings) == (1 if row["kind"] == "last word" else 4)
        assert len({ending.casefold() for ending in endings}) == len(endings)
        assert 0 <= row["right"] < len(endings)
        for text in (row["context"], *endings):
            assert text == text.strip()
            assert text.isascii()

    @pytest.mark.parametrize("row", CHOICES, ids=lambda row: row["context"][:40])
    def test_no_ending_begins_another(self, row: dict[str, Any]) -> None:
        """The beginning of an ending is likelier than the ending, whatever the context."""
        endings = [ending.casefold() for ending in row["endings"]]
        for ending in endings:
            assert not any(o != ending and o.startswith(f"{ending} ") for o in endings)

    def test_none_is_there_twice(self) -> None:
        assert len({row["context"].casefold() for row in ROWS}) == len(ROWS)

    def test_the_place_of_the_right_one_tells_nothing(self) -> None:
        for kind in {row["kind"] for row in CHOICES}:
            places = Counter(row["right"] for row in CHOICES if row["kind"] == kind)
            assert max(places.values()) - min(places.values()) <= 1, kind

    def test_its_length_tells_little(self) -> None:
        lengths = [[len(e) for e in row["endings"]] for row in CHOICES]
        own = [found.pop(row["right"]) for found, row in zip(lengths, CHOICES, strict=True)]
        pairs = list(zip(own, lengths, strict=True))
        assert sum(first < min(others) for first, others in pairs) < 0.25 * len(CHOICES)
        assert sum(first > max(others) for first, others in pairs) < 0.25 * len(CHOICES)

    def test_a_last_word_is_one_word(self) -> None:
        for row in ROWS:
            if row["kind"] == "last word":
                assert row["endings"][0].isalpha()
                assert not row["context"].endswith(row["endings"][0])


def outputs(items: list[Item], logprobs: list[list[float]], greedy: list[bool]) -> Outputs:
    width = max(map(len, logprobs))
    rows = torch.tensor([row + [torch.nan] * (width - len(row)) for row in logprobs]).double()
    firsts = torch.zeros(len(items), width, dtype=torch.bool)
    firsts[:, 0] = torch.tensor(greedy)
    found = Endings(rows, (~rows.isnan()).long(), firsts)
    return Outputs(prompts={"it.items": items}, endings={"it.items": found})


def scorer(**options: Any) -> Capability:
    return Capability(Settings(model="x"), name="it", optimization="none", options=options)


FOUR = [
    Item("a", None, None, ("bb", "c"), 0),
    Item("d", None, None, ("e", "f", "g"), 2),
    Item("h", None, None, ("i",), 0),
    Item("j", None, None, ("k",), 0),
]
FOUND = outputs(
    FOUR, [[-3.0, -2.0], [-1.0, -4.0, -1.5], [-0.5], [-0.1]], [False, False, True, False]
)


class TestFigures:
    def test_endings_are_compared_by_character(self) -> None:
        assert scorer().values(FOUND, FOUND) == [True, False, True, False]

    def test_or_as_they_are(self) -> None:
        found = scorer(normalization="none").values(FOUND, FOUND)
        assert found == [False, False, True, False]

    def test_of_equal_endings_none_is_right(self) -> None:
        items = [Item("a", None, None, ("b", "c"), right) for right in (0, 1)]
        found = outputs(items, [[-1.0, -1.0], [-1.0, -1.0]], [False, False])
        assert scorer().values(found, found) == [False, False]

    def test_probabilities_are_among_the_endings_or_of_the_last_word(self) -> None:
        shares = [torch.tensor(row).softmax(-1) for row in ([-3.0, -2.0], [-1.0, -4.0, -1.5])]
        assert scorer().probabilities(FOUND) == pytest.approx(
            [float(shares[0][0]), float(shares[1][2]), 0.60653, 0.904837], abs=1e-5
        )

    def test_the_display_tells_items_chance_and_probability(self) -> None:
        score = scorer().score(FOUND, FOUND)
        assert score.display == "2/4 (chance 21%, p 0.537)"
        assert (score.value, score.values, score.total) == (0.5, (1.0, 0.0, 1.0, 0.0), 4)
        assert score.is_count
        assert score.interval == pytest.approx((0.15, 0.85), abs=0.001)
        assert chance_level(FOUR) == pytest.approx((1 / 2 + 1 / 3) / 4)

    def test_what_is_no_number_is_no_score(self) -> None:
        found = outputs(FOUR[:1], [[torch.nan, torch.nan]], [False])
        assert not torch.tensor(scorer().score(found, found).value).isfinite()


class TestOptimization:
    def test_it_is_only_reported_unless_that_is_set(self) -> None:
        for plugin in ("capability", SCORERS["capability"]):
            chosen = Settings(model="x", scorers=[{"plugin": plugin}, {"plugin": "keyword"}])
            assert [one.optimization for one in chosen.scorers] == ["none", "minimize"]
        chosen = Settings(model="x", scorers=[{"plugin": "capability", "optimization": "maximize"}])
        assert chosen.scorers[0].optimization == "maximize"

    def test_a_search_for_the_least_is_refused(self) -> None:
        chosen = Settings(model="x", scorers=[{"plugin": "capability", "optimization": "minimize"}])
        with pytest.raises(ScorerError, match="as few of them as possible"):
            check_scorers(load_scorers(chosen))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("files")
    tiny.folder(path / "model")
    return Settings(
        model=str(path / "model"),
        dtypes=["float32"],
        response_prefix="",
        max_response_length=2,
        scorers=[
            {"plugin": "kl_divergence"},
            {"plugin": "capability", "optimization": "maximize"},
        ],
        scorer={"capability": {"items": {**OWN_ITEMS.model_dump(), "split": "train[:24]"}}},
    )


def prompts(settings: Settings) -> EvaluationPrompts:
    more = {
        name: load(where)
        for scorer in load_scorers(settings)
        for name, where in scorer.sets().items()
    }
    return EvaluationPrompts(
        [*map(plain, tiny.GOOD_PROMPTS)], [*map(plain, tiny.BAD_PROMPTS)], more
    )


def plain(text: str) -> Prompt:
    return Prompt(text)


@pytest.fixture(scope="module")
def model(settings: Settings) -> Model:
    return Model(settings)


@pytest.fixture(scope="module")
def directions(model: Model) -> torch.Tensor:
    good = model.get_residuals_batched(tiny.GOOD_PROMPTS)
    bad = model.get_residuals_batched(tiny.BAD_PROMPTS)
    return functional.normalize(bad.mean(dim=0) - good.mean(dim=0), dim=-1)


@pytest.fixture(scope="module")
def evaluator(settings: Settings, model: Model, directions: torch.Tensor) -> Evaluator:
    return Evaluator(settings, model, directions, prompts=prompts(settings))


def plan(weight: float) -> Plan:
    kernel = AbliterationParameters(weight, 1.5, weight / 3, 5.0)
    return Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels={"attn": kernel, "mlp": kernel},
        row_normalization="full",
    )


def right_alone(model: Model, item: Item) -> bool:
    """Whether an item is right, from one pass without padding for each ending (tiny's bytes)."""
    start = len(model.tokenizer(item.user, add_special_tokens=False).input_ids)
    found = []
    for ending in item.endings:
        whole = model.tokenizer(f"{item.user} {ending}", add_special_tokens=False).input_ids
        with torch.inference_mode():
            logprobs = model.model(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
        steps = [(n - 1, whole[n]) for n in range(start, len(whole))]
        if len(item.endings) == 1:
            return all(int(logprobs[place].argmax()) == token for place, token in steps)
        found.append(sum(float(logprobs[place, token]) for place, token in steps) / len(ending))
    return found.index(max(found)) == item.right


class TestPlans:
    def test_the_original_is_scored_as_each_ending_alone(
        self, evaluator: Evaluator, model: Model, settings: Settings
    ) -> None:
        items = prompts(settings).more["capability.items"]
        (score,) = (s for s in evaluator.baseline if s.name == "capability")
        expected = [right_alone(model, item) for item in items if isinstance(item, Item)]
        assert [value == 1 for value in score.values] == expected
        assert 0 < sum(expected) < len(expected)

    def test_plans_of_a_batch_give_what_each_gives_alone(self, evaluator: Evaluator) -> None:
        plans = [plan(weight) for weight in (1.5, 0.0, 3.0)]
        together = evaluator.evaluate(plans)
        assert together == [evaluator.evaluate([one])[0] for one in plans]
        assert together[1][1] == evaluator.baseline[1]
        assert together[0][1].values != together[2][1].values

    def test_an_edited_plan_is_scored_as_its_export(
        self,
        evaluator: Evaluator,
        settings: Settings,
        model: Model,
        directions: torch.Tensor,
        tmp_path: Path,
    ) -> None:
        hooked = evaluator.evaluate([plan(1.5)])[0][1]
        model.apply(plan(1.5), directions)
        try:
            edited = evaluator.score_current()[1]
            model.model.save_pretrained(tmp_path)
            model.tokenizer.save_pretrained(tmp_path)
        finally:
            model.restore()
        exported = evaluator.score_model(Model(settings.replaced(model=str(tmp_path))))[1]
        assert hooked.values == edited.values == exported.values
        assert hooked.display == edited.display == exported.display
        assert difference_text(evaluator.baseline[1], hooked)

    def test_more_right_answers_are_better_for_the_search(self, evaluator: Evaluator) -> None:
        scores = evaluator.evaluate([plan(1.5)], rivals=[])[0]
        trial = Trial(0, plan(1.5), scores)
        assert trial.objectives() == (scores[0].value, -scores[1].value)

    def test_the_baseline_is_read_again_as_it_was(
        self, settings: Settings, model: Model, evaluator: Evaluator, tmp_path: Path
    ) -> None:
        file = BaselineFile(tmp_path / "baseline.safetensors", "key")
        file.write(evaluator.baseline_outputs)
        again = Evaluator(
            settings, model, evaluator.directions, prompts=prompts(settings), baseline_file=file
        )
        assert again.baseline == evaluator.baseline
        fewer = prompts(settings)
        shorter = {name: rows[:5] for name, rows in fewer.more.items()}
        other = Evaluator(
            settings,
            model,
            evaluator.directions,
            prompts=EvaluationPrompts(fewer.good, fewer.bad, shorter),
            baseline_file=file,
        )
        assert len(other.baseline[1].values) == 5


def test_another_right_ending_makes_another_run(settings: Settings) -> None:
    items = [Item("a", None, None, ("b", "c"), right) for right in (0, 1)]
    good, bad = [plain("x")], [plain("y")]
    found = [
        fingerprint(settings, PromptSets(good, bad, EvaluationPrompts(good, bad, {"s": [item]})))
        for item in items
    ]
    assert found[0]["prompts"] != found[1]["prompts"]


def test_a_set_of_prompts_has_no_endings(settings: Settings, model: Model) -> None:
    wrong = EvaluationPrompts([plain("x")], [plain("y")], {"capability.items": [plain("z")]})
    with pytest.raises(ValueError, match=r"capability\.items, which has no items"):
        _ = Evaluator(settings, model, None, prompts=wrong).baseline
