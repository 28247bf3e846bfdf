"""Which layers decide: those that differ from the original and from a random vector."""

from __future__ import annotations

import json

from heretic.records import Score
from heretic.records.effects import CHANGES, Effect, LayerEffects

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
    return LayerEffects({"removed": refusals(original)}, tuple(rows), TOTAL)


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


def test_several_layers_are_told_as_a_range():
    told = effects({1: 2, 3: 4, 5: 3}, {1: 18, 3: 17, 5: 18}).conclusion("removed")
    assert "after layer 1, 3 or 5 alone" in told
    assert "to 2/20 to 4/20; a random vector leaves 17/20 to 18/20" in told


def test_without_values_per_prompt_nothing_is_tested():
    bare = refusals(18, values=False)
    found = LayerEffects(
        {"removed": bare},
        (Effect(0, "removed", "direction", bare), Effect(0, "removed", "random", bare)),
        TOTAL,
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
    assert data["prompts"] == TOTAL
