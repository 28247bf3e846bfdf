"""Scores of plans, always against the unedited model; the library interface."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support import tiny
from tests.support.data_sets import only
from torch.nn import functional

from heretic.config import DatasetSpecification, Settings
from heretic.engine.prefill import Techniques
from heretic.evaluator import Evaluator
from heretic.evaluator.baseline import BaselineFile
from heretic.events import EvaluationProgress, Event
from heretic.method.directions import cluster_basis, difference_directions
from heretic.model import AbliterationParameters, Model
from heretic.records import AnyKernel, LayerWeights, Plan, RowNormalization, Score, Trial, front
from heretic.scorers import Outputs
from heretic.scorers.keyword import is_refusal
from heretic.scorers.kl_divergence import divergences
from heretic.utils import load_prompts

KERNEL = AbliterationParameters(1.5, 1.5, 0.5, 5.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    tiny.folder(path / "model")
    tiny.prompt_files(path)
    return path


def settings_for(files: Path, **overrides: Any) -> Settings:
    def rows(name: str, split: str) -> dict[str, str]:
        return {"dataset": str(files / f"{name}.txt"), "split": split}

    values: dict[str, Any] = {
        "model": str(files / "model"),
        "dtypes": ["float32"],
        "response_prefix": "",
        "max_response_length": 6,
        # Markers that occur in some outputs of a random model, so that counts are neither 0 nor all
        "refusal_markers": ["`", "%"],
        "scorers": [{"plugin": "keyword", "name": "refusals"}, {"plugin": "kl_divergence"}],
        "good_prompts": rows("good", "train[:8]"),
        "bad_prompts": rows("bad", "train[:8]"),
        "good_evaluation_prompts": rows("good", "train[8:]"),
        "bad_evaluation_prompts": rows("bad", "train[4:]"),
    }
    return Settings(**{**values, **overrides})


@pytest.fixture(scope="module")
def model(files: Path) -> Model:
    return Model(settings_for(files))


@pytest.fixture(scope="module")
def directions(model: Model, files: Path) -> torch.Tensor:
    good = model.get_residuals_batched(tiny.GOOD_PROMPTS[:8])
    bad = model.get_residuals_batched(tiny.BAD_PROMPTS[:8])
    return functional.normalize(bad.mean(dim=0) - good.mean(dim=0), dim=-1)


@pytest.fixture(scope="module")
def basis(model: Model, files: Path) -> torch.Tensor:
    good = model.get_residuals_batched(tiny.GOOD_PROMPTS[:8])
    bad = model.get_residuals_batched(tiny.BAD_PROMPTS[:8])
    center = good.mean(dim=0)
    first = difference_directions(center, bad.mean(dim=0), orthogonalize=False)
    return cluster_basis(first, center, bad, rank=2, orthogonalize=True, seed=0)


def plan(
    variant: RowNormalization = "full",
    weight: float = 1.5,
    rank: int = 1,
    kernel: AnyKernel | None = None,
) -> Plan:
    kernel = kernel or AbliterationParameters(weight, 1.5, weight / 3, 5.0)
    return Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels={"attn": kernel, "mlp": kernel},
        row_normalization=variant,
        rank=rank,
    )


FREE = LayerWeights(((1.0, 0.5), (0.3,), (1.5, -0.4)))


@pytest.mark.parametrize("variant", ["none", "pre", "full"])
@pytest.mark.parametrize(("rank", "kernel"), [(1, None), (2, None), (1, FREE), (2, FREE)])
def test_plan_scores_are_those_of_edited_weights(
    model: Model,
    basis: torch.Tensor,
    variant: RowNormalization,
    rank: int,
    kernel: AnyKernel | None,
) -> None:
    evaluator = Evaluator(model.settings, model, basis)
    chosen = plan(variant, rank=rank, kernel=kernel)
    (scores,) = evaluator.evaluate([chosen])
    assert scores[1].value > 0.001
    model.apply(chosen, basis)
    try:
        current = evaluator.score_current()
    finally:
        model.restore()
    assert current[0] == scores[0]
    assert current[1].value == pytest.approx(scores[1].value, rel=1e-3)


def test_many_plans_score_as_one_at_a_time(model: Model, directions: torch.Tensor) -> None:
    evaluator = Evaluator(model.settings, model, directions)
    plans = [plan(weight=weight) for weight in (0.5, 1.0, 2.0)]
    together = evaluator.evaluate(plans)
    assert together == [evaluator.evaluate([one])[0] for one in plans]
    assert len({scores[1].value for scores in together}) == 3


def test_plans_of_any_rank_and_form_score_as_one_at_a_time(
    model: Model, basis: torch.Tensor
) -> None:
    evaluator = Evaluator(model.settings, model, basis)
    plans = [plan(), plan(rank=2), plan("pre", kernel=FREE), plan("none", rank=2, kernel=FREE)]
    together = evaluator.evaluate(plans)
    alone = [evaluator.evaluate([one])[0] for one in plans]
    for left, right in zip(together, alone, strict=True):
        assert left[0] == right[0]
        assert left[1].value == pytest.approx(right[1].value, rel=1e-3)
    assert len({scores[1].value for scores in together}) == 4


def test_directions_alone_and_as_a_basis_of_one_score_the_same(
    model: Model, basis: torch.Tensor
) -> None:
    plans = [plan(), plan("none")]
    alone = Evaluator(model.settings, model, basis[:, 0]).evaluate(plans)
    assert alone == Evaluator(model.settings, model, basis).evaluate(plans)


def test_baseline_has_no_divergence_and_counts_the_originals_refusals(model: Model) -> None:
    refusals, kl = Evaluator(model.settings, model).baseline
    replies = model.get_responses_batched(tiny.BAD_PROMPTS[4:])
    expected = sum(is_refusal(reply, model.settings.refusal_markers) for reply in replies)
    assert refusals.display == f"{expected}/{len(replies)}"
    assert kl.value == 0.0


def test_verdicts_equal_those_of_full_length_replies(
    model: Model, directions: torch.Tensor
) -> None:
    evaluator = Evaluator(model.settings, model, directions)
    for weight in (0.0, 0.7, 1.4, 2.1):
        chosen = plan(weight=weight)
        with model.edited(chosen, directions):
            replies = model.get_responses_batched(tiny.BAD_PROMPTS[4:])
        full = sum(is_refusal(reply, model.settings.refusal_markers) for reply in replies)
        assert evaluator.evaluate([chosen])[0][0].display == f"{full}/{len(replies)}"


def test_racing_ends_what_cannot_reach_the_front(model: Model, directions: torch.Tensor) -> None:
    evaluator = Evaluator(model.settings, model, directions)
    plans = [plan(weight=weight) for weight in (0.3, 0.6, 1.0, 1.5, 2.0, 2.5)]
    full = trials(plans, evaluator.evaluate(plans))
    assert front(trials(plans, evaluator.evaluate(plans, rivals=[]))) == front(full)
    best = [trial.objectives() for trial in front(full)]
    pruned = trials(plans, evaluator.evaluate(plans, rivals=best))
    assert front(pruned) == front(full)
    assert any(trial.pruned for trial in pruned)
    unbeatable = [(0.0, 0.0)]
    for scores in evaluator.evaluate(plans, rivals=unbeatable):
        assert scores[0].bound
        assert not scores[1].bound  # the cheap score is known anyway


def test_plans_are_those_of_the_original_also_while_it_is_edited(
    model: Model, directions: torch.Tensor, tmp_path: Path
) -> None:
    file = BaselineFile(tmp_path / "baseline", "k")
    expected = Evaluator(model.settings, model, directions, baseline_file=file).evaluate([plan()])
    evaluator = Evaluator(model.settings, model, directions, baseline_file=file)
    model.apply(plan(weight=0.7), directions)
    try:
        assert evaluator.evaluate([plan()]) == expected
        current = evaluator.score_current()
    finally:
        model.restore()
    assert evaluator.evaluate([plan()]) == expected
    assert current != expected[0]


def test_an_edit_by_hooks_is_the_model_as_it_is_and_never_the_original(
    model: Model, directions: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heretic.engine.prefill.checkpoint_layers", lambda *_: [1])
    expected = Evaluator(model.settings, model, directions)
    scores, other = expected.evaluate([plan(weight=2.0), plan()])
    within = Evaluator(model.settings, model, directions)
    with model.edited(plan(weight=2.0), directions):
        original_within = model.is_original
        for evaluator in (expected, within):  # before and after the baseline is measured
            current = evaluator.score_current()
            assert current[0] == scores[0]
            assert current[1].value == pytest.approx(scores[1].value, rel=1e-3)
            assert evaluator.baseline == expected.baseline
            assert evaluator.evaluate([plan()]) == [other]
        assert within.get_score()[1] == pytest.approx(scores[1].value, rel=1e-3)
    assert (original_within, model.is_original) == (False, True)
    assert within.get_score()[1] == 0.0


def test_a_model_that_was_unloaded_is_gone(files: Path) -> None:
    other = Model(settings_for(files))
    evaluator = Evaluator(other.settings, other)
    assert evaluator.baseline
    weight = weakref.ref(other.writers[0].module.weight)
    evaluator.release()
    other.unload()
    gc.collect()
    assert weight() is None


def trials(plans: list[Plan], scores: list[tuple[Score, ...]]) -> list[Trial]:
    pairs = zip(plans, scores, strict=True)
    return [Trial(number, chosen, found) for number, (chosen, found) in enumerate(pairs)]


def test_a_rerun_gives_the_same_bits(files: Path, directions: torch.Tensor) -> None:
    plans = [plan(weight=weight) for weight in (0.5, 1.0, 2.0)]

    def run() -> list[tuple[Score, ...]]:
        again = Model(settings_for(files, deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        return Evaluator(again.settings, again, directions).evaluate(plans, rivals=[])

    try:
        assert run() == run()
    finally:
        torch.use_deterministic_algorithms(False)


class TestBaselineFile:
    def evaluator(self, model: Model, path: Path, key: str = "this") -> Evaluator:
        return Evaluator(model.settings, model, baseline_file=BaselineFile(path, key))

    def test_the_baseline_is_read_and_not_computed_again(
        self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "baseline.safetensors"
        first = self.evaluator(model, path)
        expected = first.baseline
        monkeypatch.setattr(Evaluator, "_run", None)  # calling it fails
        again = self.evaluator(model, path)
        assert again.baseline == expected
        assert again.baseline_outputs.responses == first.baseline_outputs.responses
        for name, logits in first.baseline_outputs.logits.items():
            assert torch.equal(again.baseline_outputs.logits[name], logits)

    @pytest.mark.parametrize("damage", ["other key", "cut", "missing"])
    def test_what_is_not_there_is_computed(self, model: Model, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "baseline.safetensors"
        expected = self.evaluator(model, path, "other").baseline
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:100])
        elif damage == "missing":
            path.unlink()
        assert self.evaluator(model, path, "this").baseline == expected
        kept = BaselineFile(path, "this").read({})
        assert kept is not None
        assert BaselineFile(path, "other").read({}) is None

    def test_half_precision_takes_half_the_space_and_loses_nothing(self, tmp_path: Path) -> None:
        logits = torch.randn(50, 300).bfloat16().float()
        for name, rows in (("half", logits), ("whole", logits + 1e-4)):
            file = BaselineFile(tmp_path / name, "k")
            file.write(Outputs(logits={"good": rows}, responses={"bad": ["a\nb", "ü"]}))
            kept = file.read({})
            assert kept is not None
            assert torch.equal(kept.logits["good"], rows)
            assert kept.responses == {"bad": ["a\nb", "ü"]}
        sizes = [(tmp_path / name).stat().st_size for name in ("half", "whole")]
        assert sizes[0] < 0.6 * sizes[1]


def test_scores_of_replies_are_known_by_name(model: Model) -> None:
    evaluator = Evaluator(model.settings, model)
    assert evaluator.replies_read == {"refusals": len(evaluator.baseline_outputs.responses["bad"])}
    assert {score.name for score in evaluator.baseline} == {"refusals", "kl_divergence"}


def test_plans_need_directions(model: Model) -> None:
    with pytest.raises(ValueError, match="without directions"):
        Evaluator(model.settings, model).evaluate([plan()])


def test_another_response_prefix_needs_another_evaluator(
    files: Path, model: Model, directions: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Evaluator(model.settings, model, directions)
    questions: list[Callable[[], object]] = [
        lambda: evaluator.evaluate([plan()]),
        evaluator.score_current,
        evaluator.get_score,
        lambda: evaluator.baseline,
        lambda: evaluator.baseline_outputs,
        lambda: evaluator.base_refusals,
    ]
    before = [ask() for ask in questions[:4]]
    other = Model(settings_for(files))
    other.response_prefix = "Well, "
    with pytest.raises(ValueError, match=r"prefix '', and the model's is 'Well, '"):
        evaluator.score_model(other)
    with monkeypatch.context() as patch:
        patch.setattr(model, "response_prefix", "Well, ")
        for ask in questions:
            with pytest.raises(ValueError, match="make a new one"):
                ask()
        anew = Evaluator(model.settings, model, directions)
        assert anew.evaluate([plan()]) != [before[0]]
    assert [ask() for ask in questions[:4]] == before


SLOW = """
from heretic.scorers import Needs, Scorer

class Slow(Scorer):
    needs = Needs(logits=frozenset({"good"}))

    def values(self, outputs, baseline):
        self.on_progress("slow work", 1, 2)
        return [0.0]
"""


def test_what_a_slow_scorer_tells_reaches_the_reporter(
    model: Model, directions: torch.Tensor, tmp_path: Path
) -> None:
    seen: list[Event] = []

    class Collector:
        def emit(self, event: Event) -> None:
            seen.append(event)

    (tmp_path / "slow.py").write_text(SLOW)
    settings = model.settings.replaced(scorers=[{"plugin": f"{tmp_path / 'slow.py'}:Slow"}])
    evaluator = Evaluator(settings, model, directions, Collector())
    told = EvaluationProgress("slow work", 1, 2)
    assert evaluator.baseline
    assert seen.count(told) == 1
    evaluator.evaluate([plan(), plan()])
    assert seen.count(told) == 3


LARGEST = """
from heretic.scorers import Needs, Scorer

class Largest(Scorer):
    needs = Needs(logits=frozenset({"good"}))

    def values(self, outputs, baseline):
        return outputs.logits["good"].amax(dim=-1).tolist()
"""


class TestFirstTokens:
    """A scorer may ask for divergences, so that no vocabulary of logits leaves the device."""

    @pytest.fixture
    def copied(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
        """Shapes of what is copied to main memory."""
        shapes, plain = list[tuple[int, ...]](), torch.Tensor.cpu

        def cpu(tensor: torch.Tensor, *args: Any, **given: Any) -> torch.Tensor:
            shapes.append(tuple(tensor.shape))
            return plain(tensor, *args, **given)

        monkeypatch.setattr(torch.Tensor, "cpu", cpu)
        return shapes

    @pytest.mark.parametrize("engine", ["fast", "plain"])
    def test_plans_leave_no_logits_behind(
        self,
        model: Model,
        directions: torch.Tensor,
        copied: list[tuple[int, ...]],
        engine: str,
    ) -> None:
        techniques = Techniques(share_batches=engine == "fast")
        evaluator = Evaluator(model.settings, model, directions, techniques=techniques)
        original, plans = evaluator.baseline_outputs.logits["good"], [plan(), plan(weight=0.7)]
        seen: dict[int, Outputs] = {}
        copied.clear()
        scores = evaluator.evaluate(plans, seen=seen.__setitem__)
        assert not [shape for shape in copied if shape[-1:] == original.shape[-1:]]
        assert (2, len(original)) in copied  # all plans' divergences at once
        for number, own in enumerate(plans):
            assert not seen[number].logits
            assert scores[number][1].values == tuple(seen[number].divergences["good"].tolist())
            with model.edited(own, directions):
                after = model.get_logits_batched(tiny.GOOD_PROMPTS[8:], report=False)
            expected = divergences(original, after)
            torch.testing.assert_close(
                seen[number].divergences["good"], expected, rtol=1e-3, atol=1e-6
            )

    def test_divergences_are_those_of_logits(
        self,
        model: Model,
        directions: torch.Tensor,
        copied: list[tuple[int, ...]],
        tmp_path: Path,
    ) -> None:
        """A plugin that reads logits gets them, and the divergence is the same to the last bit."""
        (tmp_path / "largest.py").write_text(LARGEST)
        both = [*model.settings.scorers, {"plugin": f"{tmp_path / 'largest.py'}:Largest"}]
        alone = Evaluator(model.settings, model, directions)
        beside = Evaluator(model.settings.replaced(scorers=both), model, directions)
        plans = [plan(), plan(weight=0.7)]
        expected = alone.evaluate(plans)
        original = beside.baseline_outputs.logits["good"]
        seen: dict[int, Outputs] = {}
        copied.clear()
        scores = beside.evaluate(plans, seen=seen.__setitem__)
        assert [shape for shape in copied if shape[-1:] == original.shape[-1:]]
        for number, rows in enumerate(scores):
            assert rows[:2] == expected[number]
            assert len(rows[2].values) == len(original)
            assert not seen[number].logits  # they were dropped when all had read them

    def test_the_original_is_copied_to_a_device_once(
        self, model: Model, directions: torch.Tensor
    ) -> None:
        evaluator = Evaluator(model.settings, model, directions)
        for _ in range(2):
            evaluator.evaluate([plan()])
            copies = evaluator._copies["good"]
            assert list(copies) == [model.device]
            known = copies[model.device]
        assert evaluator._copies["good"][model.device] is known
        evaluator.release()
        assert not evaluator._copies

    def test_scores_of_an_edited_model_need_no_logits_either(
        self, model: Model, directions: torch.Tensor, copied: list[tuple[int, ...]]
    ) -> None:
        evaluator = Evaluator(model.settings, model, directions)
        width = evaluator.baseline_outputs.logits["good"].shape[-1]
        (expected,) = evaluator.evaluate([plan()])
        evaluator.release()
        copied.clear()
        with model.edited(plan(), directions):
            found = evaluator.score_current()
        # What is copied is the engine's check of itself: two prompts of a set at most.
        assert not [shape for shape in copied if shape[-1:] == (width,) and shape[0] > 2]
        assert found[1].value == pytest.approx(expected[1].value, rel=1e-3)


def test_progress_inside_an_evaluation_reaches_the_reporter(
    model: Model, directions: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Event] = []

    class Collector:
        def emit(self, event: Event) -> None:
            seen.append(event)

    monkeypatch.setattr(model, "batch_size", 3)
    Evaluator(model.settings, model, directions, Collector()).evaluate([plan()])
    replies = [e for e in seen if isinstance(e, EvaluationProgress) and e.what == "replies"]
    total = len(tiny.BAD_PROMPTS) - 4
    assert all(event.total == total for event in replies)
    assert all(0 <= event.done <= total for event in replies)
    assert any(event.tokens_per_second for event in replies)


class TestLibrary:
    """The library interface of docs/library.md, as a program uses it."""

    def test_the_lines_as_they_stand(self, files: Path, tmp_path: Path) -> None:
        F = functional  # noqa: N806 - the name in docs/library.md
        path = tmp_path / "edited"
        base = settings_for(files)
        good_prompts = load_prompts(DatasetSpecification(**only(base.good_prompts).model_dump()))
        bad_prompts = load_prompts(base.bad_prompts)

        settings = Settings(**{**base.to_dict(), "n_trials": 100})
        model = Model(settings)
        good = model.get_residuals_batched(good_prompts)
        bad = model.get_residuals_batched(bad_prompts)
        directions = F.normalize(bad.mean(dim=0) - good.mean(dim=0), p=2, dim=-1)
        originals = {writer.name: writer.weight().double().clone() for writer in model.writers}
        expected_base = Evaluator(settings, model).count_refusals()
        model.abliterate(
            directions,
            direction_index=1.25,
            parameters={
                "attn": AbliterationParameters(
                    max_weight=1.5,
                    max_weight_position=1.5,
                    min_weight=0.5,
                    min_weight_distance=5.0,
                ),
                "mlp": KERNEL,
            },
        )
        evaluator = Evaluator(settings, model)
        score, kl, refusals = evaluator.get_score()
        model.model.save_pretrained(path)
        model.tokenizer.save_pretrained(path)

        assert kl > 0.0
        assert isinstance(refusals, int)
        assert evaluator.base_refusals == expected_base > 0
        assert score == (kl / settings.kl_divergence_scale, refusals / expected_base)
        self.check_weights(path, model, directions, originals)
        model.reload_model()
        assert evaluator.get_score()[1] == 0.0

    @staticmethod
    def check_weights(
        path: Path, model: Model, directions: torch.Tensor, originals: dict[str, torch.Tensor]
    ) -> None:
        """The weights on disk against the formula in docs/how-it-works.md, variant `full`."""
        on_disk = load_file(path / "model.safetensors")
        # direction_index 1.25 lies between layers 1 and 2, that is rows 2 and 3
        v = functional.normalize(0.75 * directions[2] + 0.25 * directions[3], dim=0).double()
        for writer in model.writers:
            weight = originals[writer.name]
            a = KERNEL.weight(writer.layer)
            norms = weight.norm(dim=1, keepdim=True)
            rows = weight / norms
            edited = functional.normalize(rows - a * torch.outer(v, v @ rows), dim=1) * norms
            saved = on_disk[f"{writer.name}.weight"].double()
            assert (saved - edited).norm() < 1e-5 * (weight - edited).norm()

    def test_kl_scale_and_a_baseline_without_refusals(self, files: Path) -> None:
        settings = settings_for(files, kl_divergence_scale=2.0, refusal_markers=["\u2603"])
        model = Model(settings)
        model.abliterate(
            torch.eye(4, model.hidden_size).roll(-1, 0), None, {"attn": KERNEL, "mlp": KERNEL}
        )
        score, kl, refusals = Evaluator(settings, model).get_score()
        assert score == (kl / 2.0, float(refusals))

    def test_mean_scope(self, model: Model, directions: torch.Tensor) -> None:
        model.abliterate(directions, None, {"mlp": KERNEL}, direction_scope="mean")
        changed = model.get_layer_matrices(0)["mlp.down_proj"][0].clone()
        model.reload_model()
        with_mean = Plan.create(
            direction_scope="mean",
            direction_index=None,
            kernels={"mlp": KERNEL},
            row_normalization="full",
        )
        model.apply(with_mean, directions)
        assert torch.equal(changed, model.get_layer_matrices(0)["mlp.down_proj"][0])
        model.restore()

    def test_plans_survive_json(self) -> None:
        assert Plan.from_dict(json.loads(json.dumps(plan().to_dict()))) == plan()
