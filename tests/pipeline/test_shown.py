"""What a search keeps for the report: replies, geometry, sizes of edits, scores of exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support import export_case
from tests.support.search_case import Recorder
from tests.support.session import session_of

from heretic import pipeline
from heretic.model.core import Model
from heretic.pipeline import shown as module
from heretic.pipeline.shown import edit_sizes
from heretic.records.plan import Plan
from heretic.records.selection import named_rows
from heretic.refusals import classify
from heretic.report.geometry import residual_geometry
from heretic.runs.shown import ORIGINAL, ModuleSize, read_shown


def named(session: pipeline.Session) -> set[int]:
    front = session.study.front
    return {front[row].number for row in named_rows(front).values()}


def test_a_search_keeps_whole_replies_of_the_proposed_trials(tmp_path: Path) -> None:
    session = session_of(tmp_path)
    pipeline.search(session)
    shown = read_shown(session.folder)
    assert shown is not None
    numbers = {str(number) for number in named(session)}
    assert set(shown.sizes) == numbers
    by_set = {found.name: found for found in shown.replies}
    assert set(by_set) == {"good", "bad"}
    model, tokens = session.model, session.settings.max_response_length
    for name, prompts in (
        ("good", session.prompts.evaluation.good),
        ("bad", session.prompts.evaluation.bad),
    ):
        found = by_set[name]
        assert found.tokens == tokens
        assert [asked.user for asked in found.prompts] == [prompt.user for prompt in prompts]
        assert set(found.replies) == {ORIGINAL, *numbers}
        for number, replies in found.replies.items():
            trial = None if number == ORIGINAL else session.study.trials[int(number)]
            texts = _replies(model, session, prompts, tokens, trial)
            assert [reply.text for reply in replies] == texts
            for asked, reply in zip(found.prompts, replies, strict=True):
                assert reply.label == classify(reply.text, asked.user).label


def _replies(model: Model, session: pipeline.Session, prompts, tokens: int, trial):
    if trial is None:
        return model.get_responses_batched(prompts, max_new_tokens=tokens, report=False)
    with model.edited(trial.plan, session.directions):
        return model.get_responses_batched(prompts, max_new_tokens=tokens, report=False)


def test_replies_stay_out_where_the_settings_say_so(tmp_path: Path) -> None:
    session = session_of(tmp_path, keep_replies=False)
    pipeline.search(session)
    shown = read_shown(session.folder)
    assert shown is not None
    assert shown.sizes
    assert not shown.replies
    prompts = [prompt.user for prompt in session.prompts.evaluation.bad]
    text = (session.folder.path / "report.json").read_text()
    assert not any(prompt in text for prompt in prompts)


def test_a_run_that_goes_on_measures_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tmp_path)
    pipeline.search(session)
    before = (session.folder.path / "report.json").read_bytes()
    monkeypatch.setattr(module, "open_engine", None)  # fails where it is called
    pipeline.search(session)
    assert (session.folder.path / "report.json").read_bytes() == before


def test_the_geometry_is_that_of_the_first_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE", 3)
    session = session_of(tmp_path)
    shown = read_shown(session.folder)
    assert shown is not None
    assert shown.geometry_prompts == (3, 3)
    good, bad = (
        session.model.get_residuals_batched(rows[:3]).numpy()
        for rows in (session.prompts.good, session.prompts.bad)
    )
    for found, wanted in zip(shown.geometry, residual_geometry(good, bad), strict=True):
        assert found["layer"] == wanted.layer
        for name in ("silhouette", "norm_direction", "cos_means"):
            assert found[name] == pytest.approx(getattr(wanted, name), rel=1e-4, abs=1e-5)


def test_a_sample_keeps_to_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session = session_of(tmp_path)
    row = session.model.get_residuals(session.prompts.good[:1])[0]
    monkeypatch.setattr(module, "SAMPLE_BYTES", 2 * 4 * row.numel() * row.element_size())
    sample = module.ResidualSample(session.prompts)
    pipeline.compute_directions(
        session.settings, session.model, session.prompts, Recorder(), sample
    )
    sets = sample.sets()
    assert sets is not None
    assert [len(rows) for rows in sets] == [4, 4]


@pytest.mark.parametrize("variant", ["none", "pre", "full"])
def test_sizes_are_those_of_the_edited_weights(tmp_path: Path, variant: str) -> None:
    session = session_of(tmp_path, row_normalization=variant)
    pipeline.search(session)
    model, plan = session.model, session.study.front[0].plan
    before = {writer.name: writer.weight().clone() for writer in model.writers}
    found = {
        (size.layer, size.component): size for size in edit_sizes(model, plan, session.directions)
    }
    assert found
    model.apply(plan, session.directions)
    for writer in model.writers:
        change = torch.linalg.norm(writer.weight() - before[writer.name])
        relative = float(change / torch.linalg.norm(before[writer.name]))
        known = found.get((writer.layer, writer.component), ModuleSize(0, "", 0.0)).relative
        assert known == pytest.approx(relative, rel=1e-3, abs=1e-6)
    model.restore()


def test_sizes_of_experts_count_as_one(tmp_path: Path) -> None:
    from tests.support import tiny

    base = tiny.folder(tmp_path / "moe", "qwen3_moe")
    model = export_case.load(base)
    hidden, layers = model.hidden_size, model.n_layers
    plan: Plan = export_case.plan()
    directions = export_case.directions(layers, hidden)
    sizes = edit_sizes(model, plan, directions)
    places = [(size.layer, size.component) for size in sizes]
    assert len(set(places)) == len(places)
    assert all(size.relative is not None and 0 < size.relative < 2 for size in sizes)


def test_an_export_keeps_its_scores_and_long_replies(tmp_path: Path) -> None:
    session = session_of(tmp_path)
    trial = pipeline.search(session)[0]
    pipeline.export_trial(session, trial, tmp_path / "saved", "merge")
    shown = read_shown(session.folder)
    assert shown is not None
    [export] = shown.exports
    assert (export.trial, export.strategy) == (trial.number, "merge")
    assert export.rows["in the search"] == tuple(
        type(score).from_dict(score.to_dict()) for score in trial.scores
    )
    assert "from disk" in export.rows
    assert export.tokens == 24
    long = [found for found in shown.replies if found.tokens == 24]
    assert {found.name for found in long} >= {"bad"}
    assert all(set(found.replies) == {ORIGINAL, str(trial.number)} for found in long)


def test_a_probe_tells_apart_what_a_line_tells_apart() -> None:
    from heretic.report.geometry import probe_accuracy

    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(40, 8)), rng.normal(size=(60, 8))
    assert 0.3 < probe_accuracy(first, second) < 0.7
    assert probe_accuracy(first, second + 10 * np.eye(8)[0]) == 1.0
    assert np.isnan(probe_accuracy(first[:1], second))
    assert probe_accuracy(np.ones((5, 3)), np.ones((5, 3))) <= 0.5


def test_what_fails_for_the_report_ends_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tmp_path)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(module, "edit_sizes", full)
    assert pipeline.search(session)
    reporter = session.reporter
    assert isinstance(reporter, Recorder)
    told = reporter.notices("warning")
    assert [text for text in told if text.startswith("The report will lack replies")]


def test_an_interruption_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(tmp_path)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "edit_sizes", stopped)
    with pytest.raises(KeyboardInterrupt):
        pipeline.search(session)


def test_long_replies_of_the_searchs_length_replace_none(tmp_path: Path) -> None:
    session = session_of(tmp_path, max_response_length=24)
    trial = pipeline.search(session)[0]
    before = read_shown(session.folder)
    pipeline.export_trial(session, trial, tmp_path / "saved", "merge", named="org/repo")
    after = read_shown(session.folder)
    assert before is not None
    assert after is not None
    assert after.replies == before.replies
    assert after.exports[0].folder == "org/repo"
    assert str(trial.number) in after.sizes
