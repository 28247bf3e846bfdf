"""A search on a quantised model: what is saved is scored as the search did, and in full precision.

The quantising library is not part of the tests' environment. It is replaced by what it does to
figures: the matrices of the layers are rounded to a few values in each row.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import export_case, tiny
from tests.support.search_case import Recorder

from heretic.config import Settings
from heretic.errors import ExportError, ModelError
from heretic.export import verify as verifying
from heretic.export.verify import disagreements
from heretic.model import loading
from heretic.model.loading import LoadingOptions
from heretic.pipeline.single import apply_plan, compare
from heretic.records import Score

LEVELS = 7
"""Values on either side of zero, as 4 bits have them."""

SCORERS = [{"plugin": "keyword", "name": "refusals"}, {"plugin": "kl_divergence", "name": "kl"}]


def rounded(weight: torch.Tensor) -> torch.Tensor:
    step = weight.abs().amax(dim=1, keepdim=True) / LEVELS
    return (weight / step).round() * step


@pytest.fixture
def quantising(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Round where a model is to be loaded quantised; the list says how each one was loaded."""
    loaded: list[str] = []
    read = loading._load_weights

    def load(options: LoadingOptions, *others: Any) -> Any:
        model, unread = read(replace(options, quantization="none"), *others)
        loaded.append(options.quantization)
        if options.quantization != "none":
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and ".layers." in name:
                    module.weight.copy_(rounded(module.weight))
        return model, unread

    monkeypatch.setattr(loading, "_load_weights", load)
    return loaded


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    base = tiny.folder(tmp_path / "base", initializer_range=0.2)
    tiny.prompt_files(tmp_path)
    sets = {
        f"{kind}{part}_prompts": {"dataset": str(tmp_path / f"{kind}.txt"), "split": split}
        for kind in ("good", "bad")
        for part, split in (("", "train[:6]"), ("_evaluation", "train[6:]"))
    }
    return Settings(
        model=str(base),
        quantization="bnb_4bit",
        dtypes=["float32"],
        response_prefix="",
        max_response_length=4,
        scorers=SCORERS,
        **sets,
    )


def kl_of(scores: Any) -> float:
    return next(float(row["value"]) for row in scores if row["name"] == "kl")


@pytest.mark.parametrize("strategy", ["merge", "adapter"])
def test_like_is_compared_with_like(
    settings: Settings, quantising: list[str], tmp_path: Path, strategy: str
) -> None:
    saved = tmp_path / "saved"
    plan = export_case.plan("none")
    apply_plan(settings, plan, saved, strategy, Recorder())
    # The base, and the saved model as the search had it; then the original and it in full.
    assert quantising[0] == "bnb_4bit"
    assert quantising[-3:] == ["bnb_4bit", "none", "none"]
    scores = json.loads((saved / "abliteration_params.json").read_text())["scores"]
    full = scores["full_precision"]
    assert kl_of(full["before"]) == 0
    assert kl_of(full["quantised"]) > 0.01, "rounding must matter for this test to say anything"
    # In full precision the saved model is the edited original, to rounding of the dtype.
    unquantised = settings.replaced(quantization="none")
    other = apply_plan(unquantised, plan, tmp_path / "other", "merge", Recorder())
    wanted = kl_of([score.to_dict() for score in other])
    assert abs(kl_of(full["after"]) - wanted) < 0.02
    card = (saved / "README.md").read_text()
    assert "quantised (bnb_4bit) as in the search" in card
    assert "In full precision, against the original in full precision" in card
    assert "full precision" not in (tmp_path / "other" / "README.md").read_text()


@pytest.mark.parametrize("quantization", ["none", "bnb_4bit"])
def test_an_adapter_is_judged_on_its_base(
    settings: Settings, quantising: list[str], tmp_path: Path, quantization: str
) -> None:
    saved = tmp_path / "saved"
    settings = settings.replaced(quantization=quantization, evaluate_model=str(saved))
    scores = apply_plan(settings, export_case.plan("none"), saved, "adapter", Recorder())
    heard = Recorder()
    found = compare(settings, heard)
    assert abs(
        kl_of([s.to_dict() for s in found.judged]) - kl_of([s.to_dict() for s in scores])
    ) < (1e-3)
    assert any(f"{saved} is an adapter" in text for text in heard.notices())


def test_another_edit_is_still_found(
    settings: Settings,
    quantising: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What quantisation explains is allowed, and no more than that."""
    read = verifying.reload

    def spoiled(*arguments: Any) -> Any:
        model = read(*arguments)
        model.model.lm_head.weight.mul_(3)
        return model

    monkeypatch.setattr(verifying, "reload", spoiled)
    with pytest.raises(ExportError, match=r"does not score as in the search: .*kl"):
        apply_plan(settings, export_case.plan("none"), tmp_path / "saved", "merge", Recorder())


def test_an_original_that_cannot_be_loaded_in_full(
    settings: Settings, quantising: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heretic.pipeline import precision

    def no_room(*_: Any) -> Any:
        raise ModelError("there is no room for it")

    monkeypatch.setattr(precision, "LibraryModel", no_room)
    heard = Recorder()
    apply_plan(settings, export_case.plan("none"), tmp_path / "saved", "merge", heard)
    (said,) = (text for text in heard.notices() if "not checked in full precision" in text)
    assert "there is no room for it" in said
    scores = json.loads((tmp_path / "saved" / "abliteration_params.json").read_text())["scores"]
    assert "full_precision" not in scores


def test_what_quantisation_explains() -> None:
    searched = (Score("kl", 0.15, "minimize", "0.15"),)
    measured = (Score("kl", 0.25, "minimize", "0.25"),)
    assert disagreements(searched, measured, {})
    assert disagreements(searched, measured, {}, {"kl": 0.05})
    assert not disagreements(searched, measured, {}, {"kl": 0.1})


def test_casts_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """The library says of every product in 8 bits that it casts its inputs."""
    logger = logging.getLogger(loading.CASTING)
    logger.addFilter(loading._no_casts)
    with caplog.at_level(logging.WARNING):
        logger.warning("MatMul8bitLt: inputs will be cast from %s to float16", torch.float32)
        logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
