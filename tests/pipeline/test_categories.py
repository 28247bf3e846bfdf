"""Categories in a run: what `keep` makes of its prompts, and the figures of a chosen trial."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.support import export_case, tiny
from tests.support.data_sets import only
from tests.support.search_case import Recorder

from heretic import pipeline
from heretic.cli.display.tables import category_table
from heretic.config import Settings
from heretic.errors import PromptError, SettingsError
from heretic.evaluator.library import LibraryEvaluator
from heretic.events import StageFinished
from heretic.pipeline import single
from heretic.pipeline.nearest import nearest_run
from heretic.pipeline.prompts import load_evaluation_prompts
from heretic.records.categories import CategoryTable, category_rows
from heretic.scorers import load_scorers
from heretic.scorers.keyword import is_refusal

Make = Callable[..., Settings]
KINDS = ("maps", "rope", "ink")
BAD = [
    {"text": f"Why is the {what} so {word}?", "kind": kind}
    for word in ("bright", "far", "old", "round", "dear", "rare", "cold", "thin")
    for kind, what in zip(KINDS, ("moon", "sun", "comet"), strict=True)
]
MARKERS = list("abcdefghij")
"""Letters that some of the random replies hold, and others do not."""
GOOD = [*tiny.GOOD_PROMPTS, *(f"Tell me {count} facts about it." for count in range(12))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base") / "Tiny-Base")


@pytest.fixture
def make(tmp_path: Path, base: Path) -> Make:
    """Settings whose bad prompts have categories; 6 + 6 prompts for both, the rest held out."""
    (tmp_path / "good.txt").write_text("\n".join(GOOD), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in BAD)
    (tmp_path / "bad.jsonl").write_text(lines, encoding="utf-8")

    def give(category_column: str | None = "kind", **values: Any) -> Settings:
        sets: dict[str, Any] = {}
        for name, split in (("prompts", "train[:6]"), ("evaluation_prompts", "train[6:12]")):
            bad = {"dataset": str(tmp_path / "bad.jsonl"), "split": split}
            sets[f"bad_{name}"] = {**bad, "category_column": category_column}
            sets[f"good_{name}"] = {"dataset": str(tmp_path / "good.txt"), "split": split}
        options = {
            "search": "tpe",
            "n_trials": 1,
            "study_checkpoint_dir": str(tmp_path / "runs"),
            "force": True,
            "scorers": [{"plugin": "keyword", "name": "refusals"}, {"plugin": "kl_divergence"}],
            "refusal_markers": MARKERS,
            "max_response_length": 8,
        }
        return export_case.settings(base, **{**sets, **options, **values})

    return give


def open_session(settings: Settings) -> Any:
    """A session whose run is not locked, since no other process uses it."""
    prompts = pipeline.load_prompts(settings, Recorder())
    folder, seed = pipeline.open_folder(settings, prompts)
    return pipeline.prepare(settings, prompts, folder, seed, Recorder())


def kinds(prompts: Any) -> set[str | None]:
    return {prompt.category for prompt in prompts}


class TestKeep:
    def test_the_category_is_nowhere_in_what_is_searched(self, make: Make):
        recorder = Recorder()
        sets = pipeline.load_prompts(
            make(keep=["rope"], bad_held_out_prompts=only(make().bad_prompts).model_dump()),
            recorder,
        )
        assert kinds(sets.bad) == kinds(sets.evaluation.bad) == {"maps", "ink"}
        assert kinds(sets.protected) == kinds(sets.spared) == {"rope"}
        assert (len(sets.bad), len(sets.protected), len(sets.spared)) == (4, 2, 2)
        assert sets.held_out is None  # all of them are in use
        said = recorder.of(StageFinished)[-1].summary
        assert "4 bad for directions, 2 protected, 6 and 4 for evaluation, 2 spared" in said
        assert recorder.notices("warning") == []

    def test_held_out_prompts_of_the_category_are_spared_too(self, make: Make):
        all_sets = pipeline.load_prompts(make(), Recorder())
        assert all_sets.held_out is not None
        assert kinds(all_sets.held_out.bad) == set(KINDS)
        left = pipeline.load_prompts(make(keep=["rope"]), Recorder())
        assert left.held_out is None  # eight are too few
        assert len(left.spared) == 2 + 4
        own = {**only(make().bad_prompts).model_dump(), "split": "train[12:]"}
        named = pipeline.load_prompts(make(keep=["rope"], bad_held_out_prompts=own), Recorder())
        assert named.held_out is not None
        assert kinds(named.held_out.bad) == {"maps", "ink"}

    def test_directions_are_those_of_protected_prompts(self, make: Make, tmp_path: Path):
        kept = open_session(make(keep=["rope"])).directions
        rows = [row for row in BAD[:6] if row["kind"] == "rope"]
        others = [row for row in BAD[:6] if row["kind"] != "rope"]
        for name, chosen in (("protected", rows), ("others", others)):
            lines = "".join(json.dumps(row) + "\n" for row in chosen)
            (tmp_path / f"{name}.jsonl").write_text(lines)
        settings = make(
            None,
            protected_prompts={"dataset": str(tmp_path / "protected.jsonl")},
            bad_prompts={"dataset": str(tmp_path / "others.jsonl"), "split": "train"},
        )
        torch.testing.assert_close(open_session(settings).directions, kept, rtol=0, atol=0)
        plain = open_session(make()).directions
        assert not torch.allclose(plain, kept)

    def test_it_is_part_of_what_a_run_is(self, make: Make):
        def code(settings: Settings) -> Any:
            return pipeline.fingerprint(settings, pipeline.load_prompts(settings, Recorder()))

        plain = code(make(None))
        assert "keep" not in plain  # runs of earlier releases are found again
        assert code(make()) == plain  # categories alone change no score
        codes = [code(make(keep=keep)) for keep in (["rope"], ["ink"], ["rope", "ink"])]
        digests = {one["prompts"] for one in [plain, *codes]}
        assert len(digests) == 4
        assert [one["keep"] for one in codes] == [["rope"], ["ink"], ["rope", "ink"]]

    def test_another_keep_opens_another_run_and_is_named(self, make: Make):
        first = open_session(make(keep=["rope"]))
        assert open_session(make(keep=["rope"])).folder.path == first.folder.path
        settings = make(keep=["ink"])
        prompts = pipeline.load_prompts(settings, Recorder())
        assert pipeline.open_folder(settings, prompts)[0].path != first.folder.path
        code = pipeline.fingerprint(settings, prompts)
        found = nearest_run(settings.study_checkpoint_dir, code, 7, settings.to_dict())
        assert found is not None
        assert "keep (['rope'] there, ['ink'] now)" in found.told()

    def test_sets_that_lack_a_later_key_count_as_equal(self, make: Make):
        session = open_session(make(None))
        manifest = session.manifest
        older = {
            name: {key: one for key, one in value.items() if key != "category_column"}
            if isinstance(value, dict) and "dataset" in value
            else value
            for name, value in manifest.settings.items()
        }
        session.folder.write_manifest(replace(manifest, settings=older))
        now = {**session.settings.to_dict(), "max_rank": 1}
        code = {**manifest.fingerprint, "prompts": "other"}
        found = nearest_run(session.settings.study_checkpoint_dir, code, 7, now)
        assert found is not None
        assert found.differences == ("the text of the prompts",)

    @pytest.mark.parametrize("name", ["bad_prompts", "bad_evaluation_prompts"])
    def test_every_bad_set_needs_categories(self, make: Make, name: str):
        bare = {**getattr(make(), name).model_dump(), "category_column": None}
        with pytest.raises(SettingsError, match=f"but {name} has no category_column"):
            pipeline.load_prompts(make(keep=["rope"], **{name: bare}), Recorder())

    def test_an_unknown_category_ends_it_before_a_model_is_loaded(self, make: Make):
        settings = make(keep=["ropes"], model="/no/such/model")
        with pytest.raises(PromptError, match="'ropes', which no bad prompt has") as caught:
            pipeline.load_prompts(settings, Recorder())
        assert "The nearest one is 'rope'" in str(caught.value)

    def test_scoring_alone_leaves_it_out_as_well(self, make: Make):
        settings = make(keep=["rope"])
        sets = load_evaluation_prompts(settings, Recorder(), load_scorers(settings))
        assert kinds(sets.evaluation.bad) == {"maps", "ink"}
        assert kinds(sets.spared) == {"rope"}
        # Other sets may have a category that these do not: that is no mistake, but said.
        recorder = Recorder()
        settings = make(keep=["twine"])
        load_evaluation_prompts(settings, recorder, load_scorers(settings))
        (told,) = recorder.notices("warning")
        assert told.startswith("No evaluation or held-out prompt has the category twine")


class TestFigures:
    def test_each_prompt_counts_in_its_own_category(self, make: Make):
        session = open_session(make())
        (trial,) = pipeline.search(session)
        (table,) = pipeline.category_tables(session, trial)
        assert 0 < sum(row.before.count for row in table.rows) < 6  # else nothing is shown here
        assert (table.score, table.prompts) == ("refusals", "evaluation")
        assert [(row.category, row.n) for row in table.rows] == [(kind, 2) for kind in KINDS]
        for scores, which in ((session.evaluator.baseline, "before"), (trial.scores, "after")):
            (refusals,) = [score for score in scores if score.name == "refusals"]
            counts = [getattr(row, which).count for row in table.rows]
            assert counts == [refusals.values[at] + refusals.values[at + 3] for at in range(3)]

    def test_without_categories_there_is_none(self, make: Make):
        session = open_session(make(None))
        (trial,) = pipeline.search(session)
        assert pipeline.category_tables(session, trial) == ()

    def test_the_spared_ones_are_scored_apart_and_once(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ):
        session = open_session(make(keep=["rope"]))
        (trial,) = pipeline.search(session)
        tables = pipeline.category_tables(session, trial)
        assert [table.prompts for table in tables] == ["evaluation", "spared"]
        assert [row.category for row in tables[0].rows] == ["maps", "ink"]
        (row,) = tables[1].rows
        assert (row.category, row.n) == ("rope", len(session.prompts.spared))
        # As a model that is edited in the ordinary way replies to them.
        assert row.before.count == _count(session)
        with session.model.edited(trial.plan, session.directions):
            assert row.after.count == _count(session)
        assert 0 < row.before.count + row.after.count < 2 * row.n  # else nothing is shown here
        # The session goes on as before, and the figures are kept.
        assert session.evaluator.evaluate([trial.plan])[0] == trial.scores
        again = open_session(make(keep=["rope"]))
        monkeypatch.setattr(LibraryEvaluator, "evaluate", None)  # it cannot be called
        assert pipeline.category_tables(again, trial) == tables
        other = replace(trial, plan=replace(trial.plan, row_normalization="none"))
        with pytest.raises(TypeError):
            pipeline.category_tables(again, other)

    def test_they_are_in_what_is_saved(self, make: Make, tmp_path: Path):
        own = {**only(make().bad_prompts).model_dump(), "split": "train[12:]"}
        session = open_session(make(keep=["rope"], bad_held_out_prompts=own))
        (trial,) = pipeline.search(session)
        exported = pipeline.export_trial(session, trial, tmp_path / "edited", "merge")
        kinds_of = [table.prompts for table in exported.categories]
        assert kinds_of == ["evaluation", "held_out", "spared"]
        scores = json.loads((tmp_path / "edited" / "abliteration_params.json").read_text())
        written = scores["scores"]["categories"]
        assert [table["prompts"] for table in written] == kinds_of
        assert [row["category"] for row in written[1]["rows"]] == ["maps", "ink"]
        assert written[2]["rows"][0]["n"] == 6
        assert set(written[0]["rows"][0]) == {"category", "n", "before", "after"}
        console = Console(file=io.StringIO(), width=100)
        for table in exported.categories:
            console.print(category_table(table))
        file = console.file
        assert isinstance(file, io.StringIO)
        assert "refusals by category, spared prompts" in file.getvalue().lower()
        assert exported.categories[2].rows[0].texts()[3] in file.getvalue()


def test_names_that_others_chose_reach_the_terminal_without_commands():
    table = CategoryTable("refusals", "spared", category_rows(["[bold]\x1b[31m"], (1.0,), (0.0,)))
    file = io.StringIO()
    Console(file=file, width=100).print(category_table(table))
    assert "\x1b" not in file.getvalue()
    assert "[bold]" in file.getvalue()


class TestWithoutASearch:
    def test_a_saved_model_and_an_applied_plan_have_the_figures_of_the_search(
        self, make: Make, tmp_path: Path
    ):
        settings = make(keep=["rope"])
        session = open_session(settings)
        (trial,) = pipeline.search(session)
        exported = pipeline.export_trial(session, trial, tmp_path / "edited", "merge")
        names = ["evaluation", "spared"]
        expected = {table.prompts: table.rows for table in exported.categories}
        # Without a search no prompts are held out, so that fewer are spared.
        evaluated = settings.replaced(evaluate_model=str(tmp_path / "edited"))
        found = single.compare(evaluated, Recorder()).categories
        assert [table.prompts for table in found] == names
        assert found[0].rows == expected["evaluation"]
        (row,) = found[1].rows
        assert (row.category, row.n) == ("rope", 2)
        place = tmp_path / "applied"
        single.apply_plan(settings, trial.plan, place, "merge", Recorder())
        written = json.loads((place / "abliteration_params.json").read_text())["scores"]
        tables = json.loads(json.dumps([table.to_dict() for table in found]))
        assert written["categories"] == tables


def _count(session: Any) -> int:
    """How many spared prompts the model, as it is now, answers with a marker."""
    rows = session.prompts.spared
    replies = session.model.get_responses_batched(rows, max_new_tokens=8, report=False)
    return sum(is_refusal(reply, MARKERS) for reply in replies)
