"""The card says how its figures came about, and names what has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import export_case

from heretic.export.documents.card import model_card
from heretic.export.documents.measured import not_measured
from heretic.export.request import ExportRequest, HeldOut, LongReplies, UsedPrompts
from heretic.records import Score
from heretic.records.categories import CategoryTable, category_rows
from heretic.refusals import VERSION

USED = (
    UsedPrompts("bad, directions", "org/asked, train[:400]", 400, "0a1b2c3d4e5f"),
    UsedPrompts("bad, held out", "", 90, "ffffffffffff"),
)


@pytest.fixture
def wanted() -> ExportRequest:
    of = export_case.settings(Path("org/Base-1B"), max_response_length=40)
    return replace(export_case.request(of), prompts=USED, compared=24)


def words(request: ExportRequest) -> str:
    return " ".join(model_card(request, "merge").split())


def rate(count: int, name: str = "refusals") -> Score:
    values = tuple(float(row < count) for row in range(20))
    return Score(name, count / 20, "minimize", f"{count}/20", interval=(0.01, 0.3), values=values)


def long_of(*names: str) -> LongReplies:
    return LongReplies(
        256, tuple(rate(18, name) for name in names), tuple(rate(2, name) for name in names)
    )


HELD_OUT = HeldOut((rate(18),), (rate(3),), 20, 20)


class TestEachLine:
    def test_lengths_of_replies(self, wanted: ExportRequest) -> None:
        assert "up to 40 new tokens in the search; decoding was greedy" in words(wanted)
        long = replace(wanted, long_replies=long_of("refusals"))
        assert "up to 40 new tokens in the search, and up to 256 when" in words(long)

    def test_sets_of_prompts(self, wanted: ExportRequest) -> None:
        text = model_card(wanted, "merge")
        assert "| bad, directions | org/asked, train[:400] | 400 | `0a1b2c3d4e5f` |" in text
        assert "| bad, held out | rows left over | 90 | `ffffffffffff` |" in text

    def test_what_chose_the_trial_and_what_reports_it(self, wanted: ExportRequest) -> None:
        assert "chosen among 24" in words(wanted)
        assert "(Bonferroni). No fresh prompts were at hand." in words(wanted)
        fresh = words(replace(wanted, held_out=HELD_OUT))
        assert "believe the held-out prompts" in fresh
        assert "Bonferroni" not in fresh
        assert "was not chosen among others" in words(replace(wanted, compared=1))

    def test_what_counted(self, wanted: ExportRequest) -> None:
        assert "- The row refusals: Refusals were counted by rules" in words(wanted)
        assert f"detector version {VERSION}, balanced accuracy 0." in words(wanted)
        of = export_case.settings(Path("org/Base-1B"), scorers=[{"plugin": "keyword"}])
        by_words = words(replace(wanted, settings=of.to_dict()))
        assert "Refusals were counted by a list of words" in by_words
        assert "were counted by rules" not in by_words
        both = [{"plugin": "keyword", "name": "words"}, {"plugin": "refusal", "name": "told"}]
        of = export_case.settings(Path("org/Base-1B"), scorers=both)
        told = words(replace(wanted, settings=of.to_dict()))
        assert "- The row words: Refusals were counted by a list of words." in told
        assert "- The row told: Refusals were counted by rules" in told

    def test_the_version_that_counted(self, wanted: ExportRequest) -> None:
        def counted(before: int, after: int) -> str:
            old, new = (replace(rate(2), detector=version) for version in (before, after))
            return words(replace(wanted, baseline=(old,), verified=(new,)))

        assert f"detector version {VERSION}, balanced" in counted(VERSION, VERSION)
        earlier = counted(VERSION - 1, VERSION - 1)
        assert f"detector version {VERSION - 1}, an earlier one" in earlier
        assert "balanced accuracy" not in earlier
        mixed = counted(VERSION, VERSION - 1)
        assert f"versions {VERSION - 1} and {VERSION}, **whose counts cannot be" in mixed

    def test_the_seed(self, wanted: ExportRequest) -> None:
        assert "Seed: 7." in words(wanted)

    def test_what_was_not_measured(self, wanted: ExportRequest) -> None:
        assert "**Not measured:** whether it still answers questions right" in words(wanted)


def test_what_was_measured_is_not_in_that_list(wanted: ExportRequest) -> None:
    named = ("capability", "recognition", "late refusals", "never saw", "loaded again")
    every = " ".join(not_measured(wanted))
    assert all(name in every for name in named)
    whole = replace(
        wanted,
        verified=wanted.trial.scores,
        held_out=HELD_OUT,
        long_replies=long_of("refusals", "capability", "recognition"),
    )
    left = " ".join(not_measured(whole))
    assert not any(name in left for name in named)
    assert "quantise" in left


def test_the_best_of_many_has_a_wider_interval(wanted: ExportRequest) -> None:
    many = replace(wanted, verified=(rate(2),))
    alone, fresh = replace(many, compared=1), replace(many, held_out=HELD_OUT)
    assert "2/20 [0.01, 0.3]" in words(alone)
    assert "2/20 [0.01, 0.3]" in words(fresh)
    assert "2/20 [0.01, 0.3]" not in words(many)


def test_long_replies_come_with_paired_differences(wanted: ExportRequest) -> None:
    text = model_card(replace(wanted, long_replies=long_of("capability")), "merge")
    assert "| score | base model | this model | difference, 95% interval |" in text
    assert "| -0.8 [" in text


def test_a_copy_without_figures_tells_nothing(wanted: ExportRequest) -> None:
    assert "How this was measured" not in words(replace(wanted, as_recorded=True))


def test_categories_are_told(wanted: ExportRequest) -> None:
    rows = category_rows(["maps", "maps", "ink"], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0])
    text = model_card(
        replace(wanted, categories=(CategoryTable("refusals", "spared", rows),)), "merge"
    )
    assert "Refusals by category of the prompts (spared):" in text
    assert "| maps | 2 | 2/2 [" in text
