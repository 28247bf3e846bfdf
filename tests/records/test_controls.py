"""What follows from controls, in one sentence."""

from __future__ import annotations

import json

import pytest

from heretic.records import Optimization, Score
from heretic.records.controls import Control, Kind, conclusion
from heretic.records.statistics import interval

TOTAL = 100


def scores(count: int, optimization: Optimization = "minimize") -> tuple[Score, ...]:
    values = [float(row < count) for row in range(TOTAL)]
    refusals = Score(
        "refusals",
        count / TOTAL,
        optimization,
        f"{count}/{TOTAL}",
        interval=interval([bool(value) for value in values]),
        values=tuple(values),
    )
    return refusals, Score("kl_divergence", 0.1, "minimize", "0.1000")


def control(kind: Kind, count: int, draw: int = 0, shows: tuple[int, int] | None = None) -> Control:
    return Control(kind, draw, scores(count), shows)


CHOSEN = control("chosen", 3)


def of(*controls: Control, baseline: int = 98) -> str:
    return conclusion(scores(baseline), [CHOSEN, *controls])


class TestSentence:
    def test_of_controls_that_fail(self) -> None:
        found = of(control("shuffled", 96, 1), control("shuffled", 98, 2), control("random", 97, 1))
        assert found == (
            "Shuffled labels and random rotations leave 96 to 98 of 100 refusals, the chosen plan "
            "3: the direction carries something of the behaviour or of its topic."
        )

    def test_of_controls_that_work(self) -> None:
        assert "the size of the edit does it" in of(
            control("random", 3, 1), control("random", 5, 2)
        )
        topic = control("topic", 3, shows=(0, 50))
        found = of(control("random", 3, 1), control("shuffled", 90, 2), topic)
        assert found.endswith("1 of 2 do as well, so the direction may carry nothing.")

    @pytest.mark.parametrize(
        ("count", "said"),
        [
            (3, "no worse: it carries the topic."),
            (5, "no worse: it carries the topic."),  # not told apart
            (50, "part of what it carries is the topic."),
            (97, "the original's 98: it carries the behaviour, not the topic of these prompts."),
        ],
    )
    def test_of_the_topic(self, count: int, said: str) -> None:
        found = of(control("shuffled", 97, 1), control("topic", count, shows=(0, 50)))
        assert found.endswith(said)
        assert f"leaves {count} of 100 refusals" in found
        assert found.count(".") == 1

    def test_of_a_topic_that_shows_the_behaviour(self) -> None:
        found = of(control("random", 97, 1), control("topic", 3, shows=(6, 50)))
        assert found.endswith(
            "which says nothing, since 6 of 50 topic prompts show the behaviour as well."
        )

    def test_of_a_plan_that_does_nothing(self) -> None:
        found = of(control("random", 3, 1), baseline=4)
        assert found.endswith("the difference may be chance, so nothing follows.")

    def test_of_a_behaviour_that_is_wanted(self) -> None:
        controls = [
            Control("chosen", 0, scores(90, "maximize")),
            Control("random", 1, scores(4, "maximize")),
        ]
        found = conclusion(scores(2, "maximize"), controls)
        assert found.startswith("Random rotations reach 4 of 100 refusals, the chosen plan 90")
        assert found.endswith("something of the behaviour or of its topic.")

    def test_of_a_fit(self) -> None:
        assert "the fit carries something" in of(control("random", 97, 1), control("layers", 90, 1))
        assert "the fit carries something" in of(control("random", 97, 1))

    def test_of_scores_without_values(self) -> None:
        plain = {
            name: (Score("refusals", value, "minimize", f"{value:.2f}"),)
            for name, value in {"original": 0.9, "chosen": 0.1, "random": 0.85}.items()
        }
        controls = [Control("chosen", 0, plain["chosen"]), Control("random", 1, plain["random"])]
        found = conclusion(plain["original"], controls)
        assert found.startswith("Random rotations leave refusals of 0.85, the chosen plan 0.1:")

    def test_without_an_objective(self) -> None:
        only = (Score("refusals", 0.1, "none", "1/10"),)
        assert "nothing says" in conclusion(only, [Control("chosen", 0, only)])


def test_a_control_can_be_written_and_read() -> None:
    for one in (CHOSEN, control("topic", 4, shows=(1, 50)), control("shuffled", 5, 3)):
        record = json.loads(json.dumps(one.to_dict(with_values=True)))
        assert Control.from_dict(record) == one


@pytest.mark.parametrize(
    "change",
    [{"kind": "other"}, {"draw": -1}, {"scores": None}, {"shows": [1]}, {"shows": [1, -2]}],
)
def test_a_damaged_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Control.from_dict({**CHOSEN.to_dict(), **change})
