"""Protected prompts: their effect on directions, on the sweep and on the run's fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import export_case, tiny
from tests.support.search_case import Recorder

from heretic import pipeline
from heretic.config import Settings
from heretic.errors import StudyError
from heretic.events import Notice, StageFinished
from heretic.records import Plan
from heretic.search import beginning

Make = Callable[..., Settings]
PROTECTED = [f"Why is {what} so old?" for what in ("tea", "ink", "rope", "salt", "wool")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base") / "Tiny-Base")


@pytest.fixture
def make(tmp_path: Path, base: Path) -> Make:
    """Settings with prompts in files; `protected` are texts, or none."""

    def give(protected: list[str] | None = PROTECTED, **values: Any) -> Settings:
        sets: dict[str, Any] = {}
        rows = {"good": tiny.GOOD_PROMPTS, "bad": tiny.BAD_PROMPTS, "protected": protected}
        for kind, lines in rows.items():
            if lines is None:
                continue
            path = tmp_path / f"{kind}.txt"
            path.write_text("\n".join(lines), encoding="utf-8")
            sets[f"{kind}_prompts"] = {"dataset": str(path), "split": "train[:8]"}
            if kind != "protected":
                place = {"dataset": str(path), "split": "train[8:12]"}
                sets[f"{kind}_evaluation_prompts"] = place
        options = {"search": "tpe", "n_trials": 1, "study_checkpoint_dir": str(tmp_path / "runs")}
        return export_case.settings(base, **{**sets, **options, **values})

    return give


def prepared(settings: Settings) -> pipeline.Session:
    reporter = Recorder()
    prompts = pipeline.load_prompts(settings, reporter)
    folder, seed = pipeline.open_folder(settings, prompts)
    with folder.lock():
        return pipeline.prepare(settings, prompts, folder, seed, reporter)


def test_directions_spare_what_is_protected(make: Make):
    plain = prepared(make(None)).directions
    one, two, three = (prepared(make(max_rank=rank)).directions for rank in (1, 2, 3))
    layers, hidden = plain.shape
    assert one.shape == (layers, hidden)
    assert two.shape == (layers, 2, hidden)
    assert three.shape == (layers, 3, hidden)
    torch.testing.assert_close(two[:, 0], one)
    torch.testing.assert_close(three[:, :2], two)
    protected = prepared(make(None, bad_prompts=make().protected_prompts)).directions
    torch.testing.assert_close(two[1:, 1], protected[1:])
    assert ((plain * protected).sum(dim=-1)[1:].abs() > 0.1).all()  # else there is nothing to spare
    torch.testing.assert_close((one * protected).sum(dim=-1), torch.zeros(layers))


def test_they_are_part_of_what_a_run_is(make: Make):
    codes = []
    for protected in (None, PROTECTED, PROTECTED[:4]):
        settings = make(protected)
        prompts = pipeline.load_prompts(settings, Recorder())
        codes.append(pipeline.fingerprint(settings, prompts)["prompts"])
    assert len(set(codes)) == 3


def test_the_sweep_is_given_them(make: Make, monkeypatch: pytest.MonkeyPatch):
    given = []

    def sweep(*_: Any, protected: Any, **__: Any) -> list[Plan]:
        given.append([prompt.user for prompt in protected])
        return []

    monkeypatch.setattr(beginning, "sweep_plans", sweep)
    prepared(make(search="ablation"))
    prepared(make(None, search="ablation"))
    assert given == [PROTECTED, []]


def test_they_must_differ_from_the_bad_ones(make: Make):
    settings = make()
    with pytest.raises(StudyError, match="The protected and the bad prompts leave the same"):
        prepared(settings.replaced(protected_prompts=settings.bad_prompts))


def test_what_is_protected_and_scored_on_is_said(make: Make, tmp_path: Path):
    own = tmp_path / "scored.txt"
    own.write_text("\n".join(["Who was that?", *PROTECTED[:2]]), encoding="utf-8")
    scorers = [{"plugin": "refusal", "name": "kept"}, {"plugin": "kl_divergence"}]
    recorder = Recorder()
    pipeline.load_prompts(
        make(scorers=scorers, scorer={"kept": {"prompts": {"dataset": str(own)}}}), recorder
    )
    (warning,) = [notice for notice in recorder.of(Notice) if notice.level == "warning"]
    assert warning.text.startswith("2 protected prompts are in both")
    assert "8 bad for directions, 5 protected, 4 and 4" in recorder.of(StageFinished)[-1].summary
