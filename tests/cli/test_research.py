"""Research output of a run, from settings to files."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from heretic.cli.display import research
from heretic.config import Settings
from heretic.errors import HereticError
from heretic.events import Event, StageProgress
from heretic.records import Plan, Score, Trial
from heretic.report import projection


class Recorder:
    def __init__(self) -> None:
        self.console = Console(width=80, file=io.StringIO(), record=True)
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        """Nothing to close."""


def session(tmp_path: Path, **settings: Any) -> Any:
    """The parts of a session that research output reads; residuals are random, 2 layers."""
    generator = torch.Generator().manual_seed(0)

    def residuals(prompts: list[str]) -> torch.Tensor:
        return torch.randn(len(prompts), 3, 8, generator=generator)

    plan = Plan.create(
        direction_scope="per layer", direction_index=None, kernels={}, row_normalization="none"
    )
    scores = (Score("refusals", 0.1, "minimize", "1/10"), Score("kl", 0.2, "minimize", "0.2"))
    return SimpleNamespace(
        settings=Settings(model="org/tiny", residual_plot_path=tmp_path / "plots", **settings),
        model=SimpleNamespace(get_residuals_batched=residuals),
        prompts=SimpleNamespace(good=["good"] * 8, bad=["bad"] * 9),
        manifest=SimpleNamespace(seed=1),
        study=SimpleNamespace(trials=[Trial(0, plan, scores)]),
        evaluator=SimpleNamespace(baseline=scores),
        folder=SimpleNamespace(path=tmp_path),
    )


def printed(session: Any, recorder: Recorder | None = None) -> str:
    display = recorder or Recorder()
    research.show_residuals(session, display)
    return display.console.export_text()


def test_nothing_is_computed_by_default(tmp_path: Path):
    quiet = session(tmp_path)
    quiet.model = None
    assert printed(quiet) == ""


def test_geometry_is_printed_on_request(tmp_path: Path):
    text = printed(session(tmp_path, print_residual_geometry=True))
    assert "silhouette" in text
    assert not (tmp_path / "plots").exists()


def test_pictures_are_drawn_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def plain(good: Any, bad: Any, *, seed: int, progress: Any) -> list[projection.Projection]:
        progress(2, 2)
        return [
            projection.Projection(layer, good[:, layer + 1, :2], bad[:, layer + 1, :2])
            for layer in range(2)
        ]

    monkeypatch.setattr(projection, "project", plain)
    recorder = Recorder()
    text = printed(session(tmp_path, plot_residuals=True), recorder)
    assert "Residual plots are in" in text
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["layer_000.png", "layer_001.png", "layers.gif"]
    assert StageProgress(2, 2, "layers") in recorder.events


def test_unknown_style_is_said_before_the_work(tmp_path: Path):
    pytest.importorskip("pacmap")
    settings = session(tmp_path, plot_residuals=True, residual_plot_style="none").settings
    with pytest.raises(HereticError, match="style"):
        research.check_research(settings)


def test_picture_of_the_front_lies_in_the_run_folder(tmp_path: Path):
    run = session(tmp_path)
    path = research.draw_run_front(run, run.study.trials[0])
    assert path == tmp_path / "front.png"
    with Image.open(path) as image:
        image.load()
