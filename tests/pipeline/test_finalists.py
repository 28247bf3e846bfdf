"""The trials that a menu proposes are scored on long replies, all together, and once."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from tests.support.session import session_of

from heretic import pipeline
from heretic.cli.workflow import finalists_table
from heretic.pipeline import finalists as module
from heretic.pipeline.long_replies import long_replies


def test_their_scores_are_those_of_each_alone(tmp_path: Path) -> None:
    session = session_of(tmp_path)
    trials = pipeline.search(session)[:2]
    found = pipeline.score_finalists(session, trials)
    assert found is not None
    assert (found.tokens, found.prompts) == (24, len(session.prompts.evaluation.bad))
    for trial in trials:
        alone = long_replies(session, trial)
        assert alone is not None
        wanted = {score.name: score.display for score in alone.after}
        scores = {score.name: score.display for score in found.after[trial.number]}
        assert list(scores) == ["refusals", "late_refusals", "broken_replies"]
        assert scores["refusals"] == wanted["refusals"]
        assert scores["late_refusals"] == wanted["late_refusals"]


def test_only_the_first_prompts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST", 2)
    session = session_of(tmp_path)
    trials = pipeline.search(session)
    found = pipeline.score_finalists(session, trials)
    assert found is not None
    assert found.prompts == 2
    console = Console(width=80)
    with console.capture() as printed:
        console.print(finalists_table(found, trials))
    assert "2 replies of up to 24 tokens" in printed.get()


def test_the_run_folder_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(tmp_path)
    trials = pipeline.search(session)
    found = pipeline.score_finalists(session, trials)
    monkeypatch.setattr(module, "_measured", None)
    assert pipeline.score_finalists(session, trials) == found


def test_other_behaviours_have_none(tmp_path: Path) -> None:
    session = session_of(tmp_path, scorers=[{"plugin": "kl_divergence"}])
    assert pipeline.score_finalists(session, pipeline.search(session)) is None
