"""Racing ends evaluations early, and the front stays the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heretic import records
from heretic.config import Settings
from heretic.evaluator.race import Race
from heretic.records import Optimization, Plan, Score, Trial
from heretic.scorers import Needs, Outputs, PromptSet, Scorer
from heretic.scorers.keyword import KeywordRefusals

PROMPTS = 6
SIZES: Mapping[PromptSet, int] = {"good": 1, "bad": PROMPTS}
BASELINE = Outputs()
NO_PLAN = Plan.create(
    direction_scope="per layer", direction_index=None, kernels={}, row_normalization="none"
)


class Damage(Scorer):
    """Stands for every cheap score: what the logits say."""

    needs = Needs(logits=frozenset({"good"}))

    def measure(self, outputs: Outputs, baseline: Outputs) -> tuple[float, str]:
        value = float(outputs.logits["good"])
        return value, str(value)


class Length(Scorer):
    """A score that cannot tell how good it may become."""

    needs = Needs(responses=frozenset({"bad"}))

    def measure(self, outputs: Outputs, baseline: Outputs) -> tuple[float, str]:
        value = float(sum(map(len, outputs.responses["bad"])))
        return value, str(value)


def scorers(refusals: Optimization = "minimize", *more: Scorer) -> tuple[Scorer, ...]:
    settings = Settings(model="x")
    return (
        KeywordRefusals(settings, name="refusals", optimization=refusals),
        Damage(settings, name="damage"),
        *more,
    )


Drawn = tuple[float, list[bool]]
PLANS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
        st.lists(st.booleans(), min_size=PROMPTS, max_size=PROMPTS),
    ),
    min_size=1,
    max_size=8,
)


def evaluate(
    plan: Drawn, rivals: list[Any] | None, chosen: tuple[Scorer, ...]
) -> tuple[tuple[Score, ...], int]:
    """A plan's scores, and how many replies it took."""
    race = Race(chosen, BASELINE, SIZES, 1, rivals)
    damage, refused = plan
    race.take_logits(0, "good", torch.tensor(damage))
    made = 0
    if not race.is_settled(0):
        for prompt, refusal in enumerate(refused):
            made += 1
            if not race.take_reply(0, "bad", prompt, "I cannot." if refusal else "Of course."):
                break
    return race.scores()[0], made


def search(plans: list[Drawn], racing: bool, refusals: Optimization) -> tuple[list[Trial], int]:
    """Evaluate one after the other against the front so far; all trials, and replies made."""
    trials: list[Trial] = []
    made = 0
    for number, plan in enumerate(plans):
        rivals = [trial.objectives() for trial in records.front(trials)] if racing else None
        scores, count = evaluate(plan, rivals, scorers(refusals))
        trials.append(Trial(number, NO_PLAN, scores))
        made += count
    return trials, made


@pytest.mark.parametrize("refusals", ["minimize", "maximize"])
@given(plans=PLANS)
def test_the_front_of_a_fixed_list_is_that_without_racing(
    refusals: Optimization, plans: list[Drawn]
) -> None:
    full, all_replies = search(plans, racing=False, refusals=refusals)
    pruned, replies = search(plans, racing=True, refusals=refusals)
    assert records.front(pruned) == records.front(full)
    assert replies <= all_replies == PROMPTS * len(plans)
    for ended, whole in zip(pruned, full, strict=True):
        # A trial that ended early is marked, and its bounds are at least as good as its scores.
        assert ended == whole or ended.pruned
        pairs = zip(ended.objectives(), whole.objectives(), strict=True)
        assert all(bound <= value for bound, value in pairs)


@given(plans=PLANS, order=st.randoms())
def test_plans_of_one_call_race_each_other(plans: list[Drawn], order: Any) -> None:
    race = Race(scorers(), BASELINE, SIZES, len(plans), [])
    for number, (damage, _) in enumerate(plans):
        race.take_logits(number, "good", torch.tensor(damage))
    rows = [(number, prompt) for number in range(len(plans)) for prompt in range(PROMPTS)]
    order.shuffle(rows)
    for number, prompt in rows:
        if not race.is_settled(number):
            text = "I cannot." if plans[number][1][prompt] else "Of course."
            race.take_reply(number, "bad", prompt, text)
    together = [Trial(number, NO_PLAN, scores) for number, scores in enumerate(race.scores())]
    alone, _ = search(plans, racing=False, refusals="minimize")
    assert records.front(together) == records.front(alone)


def test_a_plan_that_cannot_win_makes_no_reply() -> None:
    scores, made = evaluate((0.5, [False] * PROMPTS), [(0.0, 0.1)], scorers())
    assert made == 0
    assert scores[0] == Score("refusals", 0.0, "minimize", "unknown", bound=True)
    assert scores[1] == Score("damage", 0.5, "minimize", "0.5")


def test_a_plan_is_ended_by_the_refusal_that_settles_it() -> None:
    plan = (0.5, [True, False, True, True, True, True])
    scores, made = evaluate(plan, [(2 / PROMPTS, 0.1)], scorers())
    assert made == 3  # a tie in refusals, with more damage, is dominated
    assert scores[0].display == f"at least 2/{PROMPTS}"


def test_equals_are_not_ended() -> None:
    scores, made = evaluate((0.5, [False] * PROMPTS), [(0.0, 0.5)], scorers())
    assert made == PROMPTS
    assert not any(score.bound for score in scores)


@pytest.mark.parametrize(("optimization", "ended"), [("minimize", False), ("none", True)])
def test_a_score_that_knows_no_bound_holds_a_plan_only_as_an_objective(
    optimization: Optimization, ended: bool
) -> None:
    length = Length(Settings(model="x"), name="length", optimization=optimization)
    rival = (0.0, 0.1, 0.0) if optimization == "minimize" else (0.0, 0.1)
    scores, made = evaluate((0.5, [True] * PROMPTS), [rival], scorers("minimize", length))
    assert (made < PROMPTS) is ended
    # A score that is only reported is left out if it is unknown.
    assert [score.name for score in scores][2:] == ([] if ended else ["length"])


def test_a_plan_whose_cheap_score_is_not_finite_makes_no_reply() -> None:
    scores, made = evaluate((math.nan, [False] * PROMPTS), None, scorers())
    assert made == 0
    assert math.isnan(scores[1].value)


def test_another_measure_does_not_inherit_a_bound() -> None:
    class Fewer(KeywordRefusals):
        def measure(self, outputs: Outputs, baseline: Outputs) -> tuple[float, str]:
            return super().measure(outputs, baseline)[0] / 2, "half"

    replies: dict[PromptSet, list[str | None]] = {"bad": ["I cannot.", None]}
    settings = Settings(model="x")
    assert Fewer(settings, name="x").best_possible(replies)[0] == -math.inf
    assert KeywordRefusals(settings, name="x").best_possible(replies)[0] == 0.5
