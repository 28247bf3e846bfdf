"""What the comparison of searches keeps, and what it makes of it."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from benchmarks.search_parts.command import HERE
from benchmarks.search_parts.ours import seen_trials
from benchmarks.search_parts.quality import Counts, Quality, near_to_declining
from benchmarks.search_parts.records import Run, Seen, read_runs
from benchmarks.search_parts.report import report
from tests.support import tiny

from heretic.config.settings import Settings
from heretic.model.core import Model
from heretic.model.reading import ModelOptions
from heretic.prompts import Prompt
from heretic.records.options import options_of
from heretic.runs.events import EVENTS, STARTED, EventsFile
from heretic.runs.folder import RunFolder

RUN = next(Path(__file__).parents[1].glob("data/earlier_run/checkpoints/*/"))
COUNTS = Counts(refused=2, partly=1, broken=4)
QUALITY = Quality(3, 7, 200, COUNTS, COUNTS, first=0.01, along=0.002, accuracy=0.7, certainty=0.6)
TRIALS = (
    Seen(100.0, refusals=0.5, keywords=0.4, kl_divergence=0.01),
    Seen(110.0, refusals=0.0, keywords=0.0, kl_divergence=0.001, bound=True),
    Seen(120.0, refusals=0.03, keywords=0.02, kl_divergence=0.02),
)


def test_trials_are_timed_by_the_work_of_the_commands(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    events = EventsFile(folder / EVENTS, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    events.write(STARTED, {"since": 7.0})
    for trial in RunFolder(folder).read_trials():
        events.write("TrialFinished", {"trial": {"number": trial.number}})
    names = ("detector", "refusals", "kl_divergence")
    seen = seen_trials(folder, names)
    assert seen
    assert all(trial.at == 7.0 and trial.kl_divergence > 0 for trial in seen)
    assert any(trial.keywords > 0 for trial in seen)
    with pytest.raises(KeyError, match="keywords"):
        seen_trials(folder)


def test_a_trial_without_an_end_is_timed_by_the_next_or_by_the_last_event(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(RUN, tmp_path / "run"))
    numbers = [one.number for one in RunFolder(folder).read_trials() if one.state == "complete"]
    moments = iter(range(100))
    events = EventsFile(
        folder / EVENTS, lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(moments))
    )
    events.write(STARTED, {"since": 0.0})
    told = [number for place, number in enumerate(numbers) if place not in (1, len(numbers) - 1)]
    for number in told:
        events.write("TrialFinished", {"trial": {"number": number}})
    events.write("StageStarted", {"title": "Last"})
    times = [one.at for one in seen_trials(folder, ("detector", "refusals", "kl_divergence"))]
    assert len(numbers) >= 4
    assert times == [1.0, 2.0, *(float(place) for place in range(2, len(told) + 2))]


def test_a_run_is_read_as_it_was_kept(tmp_path: Path) -> None:
    run = Run("real", "fitted", 1, TRIALS, (QUALITY,), note="alone")
    run.write(tmp_path)
    assert read_runs(tmp_path) == [run]


def test_bounds_are_no_results() -> None:
    run = Run("real", "fitted", 1, TRIALS)
    assert (run.least(3), run.usable(3), run.least(0)) == (0.02, 120.0, None)
    first, second, third = run.volumes()
    assert first == second < third


def test_the_report_has_a_row_for_each_tool_and_each_plan() -> None:
    runs = [Run("real", "fitted", seed, TRIALS, (QUALITY,)) for seed in (1, 2)]
    text = report(runs, "a command")
    assert "| fitted | 1, 2 | 3 | 0.9664 | 120 | - | 120 s | 0.0200 |" in text
    assert text.count("| <= 3 | 2 / 1 / 4 | 2 / 1 / 4 | 0.0100 | - | 0.0020 | 70 (0.600) |") == 2


def test_what_is_kept_can_be_reported() -> None:
    runs = read_runs(HERE / "search_data")
    assert {run.tool for run in runs} >= {"peer"}
    assert "| peer |" in report(runs, "a command")


def test_prompts_that_the_original_may_decline_are_told_by_how_it_would_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(options_of(ModelOptions, Settings(model=str(tiny.folder(tmp_path)))))
    prompts = [Prompt("Hello"), Prompt("What is the time in the north of the country?")]
    openings = [(5, 6, 7), (9, 8, 7)]
    shares = []
    for row in model.encode_rows(prompts, 3):
        found = 0.0
        for opening in openings:
            logits = model.tail_logits([[*row, *opening[:2]]], 3)[0].float().log_softmax(dim=-1)
            found += float(logits[range(3), opening].sum().exp())
        shares.append(found)
    for near in (min(shares) / 2, sum(shares) / 2, 2 * max(shares)):
        monkeypatch.setattr("benchmarks.search_parts.quality.NEAR", near)
        expected = [share >= near for share in shares]
        assert near_to_declining(model, prompts, openings).tolist() == expected
    assert near_to_declining(model, prompts, ()).tolist() == [False, False]
