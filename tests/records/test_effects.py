"""Which layers decide: those that differ from the original and from a random vector."""

from __future__ import annotations

import json

import pytest

from heretic.records import Score
from heretic.records.effects import CHANGES, Change, Effect, LayerEffects, least_changes
from heretic.records.statistics import SIGNIFICANT, paired

TOTAL = 20


def refusals(count: int, *, values: bool = True) -> tuple[Score, ...]:
    each = tuple(float(place < count) for place in range(TOTAL)) if values else ()
    shown = f"{count}/{TOTAL} (1 partial)"
    return (Score("refusals", count / TOTAL, "minimize", shown, values=each),)


def effects(own: dict[int, int], control: dict[int, int], original: int = 18) -> LayerEffects:
    rows = [Effect(layer, "removed", "direction", refusals(count)) for layer, count in own.items()]
    rows += [
        Effect(layer, "removed", "random", refusals(count)) for layer, count in control.items()
    ]
    return LayerEffects({"removed": refusals(original)}, tuple(rows), {"removed": TOTAL})


def test_a_layer_decides_only_beside_the_original_and_the_random_vector():
    found = effects({0: 18, 1: 2, 2: 3}, {0: 18, 1: 17, 2: 4})
    assert found.layers == [0, 1, 2]
    assert found.deciding("removed") == [1]
    told = found.conclusion("removed")
    assert "after layer 1 alone" in told
    assert "from 18/20 to 2/20; a random vector leaves 17/20." in told


def test_what_chance_explains_decides_nothing():
    found = effects({0: 17, 1: 15}, {0: 18, 1: 18})
    assert found.deciding("removed") == []
    assert "at no layer more than chance" in found.conclusion("removed")
    # 6 of 20 fewer: p = .03 is significant for one layer, and no longer for many.
    one = effects({0: 12}, {0: 18})
    many = effects(dict.fromkeys(range(10), 12), dict.fromkeys(range(10), 18))
    assert one.deciding("removed") == [0]
    assert many.deciding("removed") == []


@pytest.mark.parametrize(("original", "own", "control"), [(20, 10, 0), (0, 10, 20)])
def test_a_layer_where_the_random_vector_does_more_decides_nothing(
    original: int, own: int, control: int
):
    assert not effects({0: own}, {0: control}, original).deciding("removed")


def test_the_least_number_of_changes_is_that_of_mcnemars_test():
    assert [least_changes(layers) for layers in (1, 8, 60)] == [6, 9, 12]  # as the document says
    for layers in (1, 2, 3, 8, 60):
        least, bound = least_changes(layers), SIGNIFICANT / layers
        for count, significant in ((least, True), (least - 1, False)):
            found = paired([1.0] * count, [0.0] * count)
            assert found is not None
            assert (found.p < bound) is significant


def small(original: int, own: int, total: int, change: Change = "removed") -> LayerEffects:
    """Eight layers that all leave `own` of `total` refusals; random vectors change nothing."""

    def score(count: int) -> tuple[Score, ...]:
        each = tuple(float(place < count) for place in range(total))
        return (Score("refusals", count / total, "minimize", f"{count}/{total}", values=each),)

    rows = [Effect(layer, change, "direction", score(own)) for layer in range(8)]
    rows += [Effect(layer, change, "random", score(original)) for layer in range(8)]
    return LayerEffects({change: score(original)}, tuple(rows), {change: total})


def test_prompts_too_few_for_any_layer_conclude_nothing():
    eight = small(8, 0, 8)
    assert eight.deciding("removed") is None
    told = eight.conclusion("removed")
    assert "too few prompts to tell. With 8 layers, at least 9 prompts must change alike" in told
    assert "and 8 can (original 8/8)" in told
    assert json.loads(json.dumps(eight.to_dict()))["changes"]["removed"]["deciding"] is None
    assert small(9, 0, 9).deciding("removed") == list(range(8))
    assert small(9, 9, 9).deciding("removed") == []


def test_what_cannot_change_gives_no_power():
    few_refuse = small(3, 3, 20)  # at most 3 fewer
    assert few_refuse.deciding("removed") is None
    assert "and 3 can (original 3/20)" in few_refuse.conclusion("removed")
    assert small(3, 20, 20).deciding("removed") == list(range(8))  # the other way it was seen
    assert small(3, 3, 20, "added").deciding("added") == []
    assert small(18, 18, 20, "added").deciding("added") is None


def test_several_layers_are_told_as_a_range():
    told = effects({1: 2, 3: 4, 5: 3}, {1: 18, 3: 17, 5: 18}).conclusion("removed")
    assert "after layer 1, 3 or 5 alone" in told
    assert "to between 2/20 and 4/20; a random vector leaves between 17/20 and 18/20" in told


def test_without_values_per_prompt_nothing_is_tested():
    bare = refusals(18, values=False)
    found = LayerEffects(
        {"removed": bare},
        (Effect(0, "removed", "direction", bare), Effect(0, "removed", "random", bare)),
        {"removed": TOTAL},
    )
    assert found.deciding("removed") is None
    assert "nothing is tested" in found.conclusion("removed")
    assert found.deciding("added") is None


def test_all_of_it_is_json():
    found = effects({0: 18, 1: 2}, {0: 18, 1: 17})
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(data["changes"]) == {"removed"} < set(CHANGES)
    assert data["changes"]["removed"]["deciding"] == [1]
    assert len(data["changes"]["removed"]["layers"]) == 4
    assert data["changes"]["removed"]["prompts"] == TOTAL
