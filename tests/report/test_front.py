"""The front as data and as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from heretic.errors import HereticError
from heretic.records import Kernel, Optimization, Plan, Score, Trial
from heretic.report.front import draw_front, front_data

PLAN = Plan.create(
    direction_scope="per layer",
    direction_index=None,
    kernels={"attn": Kernel(1.0, 5.0, 0.0, 3.0)},
    row_normalization="full",
)


def scores(refusals: float, kl: float, optimization: Optimization = "minimize"):
    return (
        Score("refusals", refusals, optimization, f"{refusals * 100:.0f}/100"),
        Score("kl_divergence", kl, "minimize", f"{kl:.3f}"),
        Score("length", 12.0, "none", "12"),
    )


def trial(number: int, refusals: float, kl: float) -> Trial:
    return Trial(number, PLAN, scores(refusals, kl))


FAILED = Trial(9, PLAN, (), state="failed", failure="out of memory")
TRIALS = [
    trial(0, 0.90, 0.01),
    trial(1, 0.40, 0.10),
    trial(2, 0.45, 0.20),
    trial(3, 0.05, 0.40),
    trial(4, 0.60, 9.00),
    FAILED,
]


def test_front_goes_from_left_to_right_and_failed_trials_are_left_out():
    data = front_data(TRIALS)
    assert [point.trial for point in data.front] == [0, 1, 3]
    assert [point.trial for point in data.others] == [2, 4]
    assert (data.x_name, data.y_name) == ("kl_divergence", "refusals")


def test_far_trials_do_not_squeeze_the_front():
    data = front_data(TRIALS)
    assert data.x_limit == pytest.approx(0.6)
    assert data.hidden == 1


def test_limit_is_the_last_trial_where_none_lies_far_out():
    assert front_data(TRIALS[:4]).x_limit == pytest.approx(0.4)


def test_original_and_chosen():
    data = front_data(TRIALS, baseline=scores(0.97, 0.0), chosen=3)
    assert data.original is not None
    assert (data.original.x, data.original.y) == (0.0, 0.97)
    assert data.chosen is not None
    assert data.chosen.label == "refusals 5/100, KL divergence 0.400"


def test_a_dominated_choice_stays_in_the_picture():
    data = front_data(TRIALS, chosen=4)
    assert data.hidden == 0
    assert data.x_limit == pytest.approx(9.0)


def test_maximised_scores_keep_their_values():
    trials = [
        Trial(0, PLAN, scores(0.2, 0.1, "maximize")),
        Trial(1, PLAN, scores(0.8, 0.1, "maximize")),
    ]
    data = front_data(trials)
    assert [(point.trial, point.y) for point in data.front] == [(1, 0.8)]


def test_named_rows_are_named_in_the_picture():
    assert front_data(TRIALS).names == {0: "least-damage", 1: "knee", 3: "fewest"}
    assert front_data(TRIALS[:1]).names == {}


@pytest.mark.parametrize(
    "trials",
    [[], [FAILED], [Trial(0, PLAN, (Score("refusals", 0.1, "minimize", "10/100"),))]],
)
def test_nothing_to_draw_is_said(trials):
    with pytest.raises(HereticError):
        front_data(trials)


@pytest.mark.parametrize("chosen", [None, 0, 3])
def test_picture_opens(tmp_path: Path, chosen: int | None):
    data = front_data(TRIALS, baseline=scores(0.97, 0.0), chosen=chosen)
    path = draw_front(data, tmp_path / "new" / "front.png", title="Five trials")
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > 600
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10
    assert [file.name for file in path.parent.iterdir()] == ["front.png"]


def test_picture_of_one_trial(tmp_path: Path):
    assert draw_front(front_data([trial(0, 0.0, 0.0)]), tmp_path / "front.png").is_file()
