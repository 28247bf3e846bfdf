"""The main job on a real model: SmolLM2 with the planted refusal, a few trials, offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from heretic import pipeline
from heretic.demo import job
from heretic.demo.data import prompt_file
from heretic.events import Silent


def rows(name: str, count: int) -> dict[str, str]:
    return {"dataset": str(prompt_file(name)), "split": f"train[:{count}]"}


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.timeout(1800)  # minutes on a quiet machine: one thread, as other tests have
def test_the_planted_refusal_is_found_and_removed(tmp_path: Path) -> None:
    settings = job.demo_settings(
        Silent(),
        {
            "search": "tpe",
            "n_trials": 3,
            "n_startup_trials": 3,
            "max_response_length": 12,
            "good_prompts": rows("ordinary_train", 24),
            "bad_prompts": rows("topic_train", 24),
            "good_evaluation_prompts": rows("ordinary_test", 10),
            "bad_evaluation_prompts": rows("topic_test", 10),
            "good_held_out_prompts": rows("ordinary_held_out", 4),
            "bad_held_out_prompts": rows("topic_held_out", 4),
            "study_checkpoint_dir": str(tmp_path / "runs"),
            "dtypes": ["float32"],
        },
    )
    prompts = pipeline.load_prompts(settings, Silent())
    folder, seed = pipeline.open_folder(settings, prompts)
    with folder.lock():
        session = pipeline.prepare(settings, prompts, folder, seed, Silent())
        baseline = session.evaluator.baseline[0].value
        assert baseline >= 0.8  # the planted model declines its topic
        front = pipeline.search(session)
        best = min(front, key=lambda trial: trial.scores[0].value)
        refusals, kl = (score.value for score in best.scores)
        assert refusals <= baseline / 2
        assert 0.0 < kl < 1.0
        exported = pipeline.export_trial(session, best, tmp_path / "edited", "merge", most_long=4)
    assert exported.held_out is not None
    assert (exported.held_out.good, exported.held_out.bad) == (4, 4)
    assert exported.saved[0].value == pytest.approx(refusals, abs=0.04)
    assert (tmp_path / "edited" / "model.safetensors").is_file()
