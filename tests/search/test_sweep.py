"""The gradient search: its derivatives are right, it saves memory, its plans become better."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from heretic.errors import StudyError
from heretic.evaluator import EvaluationPrompts, Evaluator
from heretic.method.edits import make_ablation
from heretic.model import Model
from heretic.prompts import Prompt
from heretic.records import LayerWeights, Plan, RowNormalization
from heretic.search import activations
from heretic.search import objective as objectives
from heretic.search.objective import Objective, Openings
from heretic.search.sweep import (
    DEFAULTS,
    Linearisation,
    SweepOptions,
    _step,
    _Surrogate,
    plan_of,
    sweep,
    sweep_plans,
)

VARIANTS: tuple[RowNormalization, ...] = ("none", "pre", "full")
GOOD = [Prompt(text) for text in tiny.GOOD_PROMPTS]
BAD = [Prompt(text) for text in tiny.BAD_PROMPTS]


def is_shown(reply: str) -> bool:
    return len(reply) % 2 == 0


def make_objective(
    model: Model, directions: Tensor, variant: RowNormalization = "full", rank: int = 1
) -> Objective:
    generator = torch.Generator().manual_seed(5)
    ablations = {}
    for writer in model.writers:
        rows = directions[writer.layer + 1].unsqueeze(0)
        more = torch.randn(rank - 1, rows.shape[1], generator=generator)
        basis = torch.linalg.qr(torch.cat([rows, more]).T).Q.T
        ablations[writer.name] = make_ablation(writer.weight(), basis, variant)
    return Objective(model, GOOD, BAD, ablations, is_shown)


def sample(objective: Objective, weights: Tensor, seed: int = 3) -> objectives.Sample:
    generator = torch.Generator().manual_seed(seed)
    return objective.sample(weights, range(objective.good), objective.bad, generator)


def some_weights(objective: Objective) -> Tensor:
    return torch.rand(objective.shape, generator=torch.Generator().manual_seed(1))


class _Reads(TorchDispatchMode):
    """Notes operations that make a device wait for data, but for those on known small tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self._on = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        own = name == "nonzero" and args[0].dim() == 1  # of the openings, which lie on the CPU
        if self._on and not own and name in {"_local_scalar_dense", "nonzero", "masked_select"}:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


class TestOpenings:
    def test_shares_are_of_all_replies_that_begin_so(self) -> None:
        openings = Openings.count([5, 5, 7, 9], [5, 8, 8])
        assert openings.tokens.tolist() == [5, 7, 9]
        torch.testing.assert_close(openings.shares, torch.tensor([2 / 3, 1.0, 1.0]))

    def test_log_odds_are_those_of_the_shared_probability(self) -> None:
        openings = Openings.count([0, 0, 0, 2], [0])
        probabilities = torch.tensor([[0.4, 0.4, 0.2], [0.1, 0.9, 0.0]])
        expected = torch.logit(torch.tensor([0.75 * 0.4 + 0.2, 0.75 * 0.1]))
        torch.testing.assert_close(openings.log_odds(probabilities.log()), expected)

    def test_near_certainty_there_is_still_a_slope(self) -> None:
        openings = Openings.count([0, 0, 1], [1])
        logits = torch.tensor([[25.0, 0.0, 1.0]], requires_grad=True)
        odds = openings.log_odds(logits.log_softmax(dim=-1))
        (slope,) = torch.autograd.grad(odds.sum(), logits)
        assert odds.item() == pytest.approx(25.0 - math.log(math.e + 0.5), rel=1e-3)
        assert slope[0, 0].item() == pytest.approx(1.0, rel=1e-3)
        assert slope.isfinite().all()


class TestObjective:
    def test_unedited_there_is_no_divergence_and_no_slope(
        self, model: Model, directions: Tensor
    ) -> None:
        objective = make_objective(model, directions)
        found = sample(objective, torch.zeros(objective.shape))
        torch.testing.assert_close(found.divergence, torch.zeros(len(GOOD)), atol=1e-5, rtol=0)
        assert found.divergence_gradients.mean(dim=0).abs().max() < 1e-4
        assert found.probes.abs().max() > 1e-4
        assert found.log_odds_gradients.abs().max() > 1e-4

    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("rank", [1, 2])
    def test_gradients_are_finite_differences(
        self, model: Model, directions: Tensor, variant: RowNormalization, rank: int
    ) -> None:
        objective = make_objective(model, directions, variant, rank)
        weights = some_weights(objective)
        here = sample(objective, weights)
        step = 1e-2
        for index in range(0, weights.numel(), 3):
            moved = torch.zeros(weights.numel())
            moved[index] = step
            up, down = (
                sample(objective, weights + sign * moved.reshape(weights.shape)) for sign in (1, -1)
            )
            slope = (up.divergence - down.divergence).mean() / (2 * step)
            torch.testing.assert_close(
                here.divergence_gradients.mean(dim=0)[index], slope, atol=2e-3, rtol=0.02
            )
            slopes = (up.log_odds - down.log_odds) / (2 * step)
            torch.testing.assert_close(
                here.log_odds_gradients[:, index], slopes, atol=5e-3, rtol=0.02
            )

    def test_divergence_is_what_the_evaluator_measures(
        self, model: Model, directions: Tensor
    ) -> None:
        settings = model.settings
        objective = make_objective(model, directions)
        weights = some_weights(objective)
        plan = plan_of(weights, model.get_abliterable_components(), "full")
        prompts = EvaluationPrompts(GOOD, BAD)
        scores = Evaluator(settings, model, directions, prompts=prompts).evaluate([plan])[0]
        measured = next(score.value for score in scores if score.name == "kl_divergence")
        assert sample(objective, weights).divergence.mean().item() == pytest.approx(
            measured, rel=1e-3
        )

    def test_curvature_is_the_second_derivative_where_nothing_is_edited(
        self, model: Model, directions: Tensor
    ) -> None:
        objective = make_objective(model, directions, "none")
        nothing = torch.zeros(objective.shape)
        probes = torch.cat([sample(objective, nothing, seed).probes for seed in range(60)])
        curvature = probes.T @ probes / len(probes)
        along = some_weights(objective).flatten()
        step = 0.05
        up, down = (
            sample(objective, sign * step * along.reshape(nothing.shape)).divergence.mean()
            for sign in (1, -1)
        )
        assert (along @ curvature @ along).item() == pytest.approx(
            ((up + down) / step**2).item(), rel=0.15
        )

    def test_layers_computed_twice_give_the_same(
        self, model: Model, directions: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        objective = make_objective(model, directions)
        weights = some_weights(objective)
        expected = sample(objective, weights)
        passes = []
        handle = model.get_layers()[1].register_forward_hook(lambda *_: passes.append(1))
        monkeypatch.setattr(activations, "MEMORY_SHARE", 0.0)
        recorded = len(passes)
        found = sample(objective, weights)
        handle.remove()
        assert recorded == 0
        torch.testing.assert_close(found.log_odds_gradients, expected.log_odds_gradients)
        torch.testing.assert_close(found.divergence_gradients, expected.divergence_gradients)
        assert all("forward" not in vars(layer) for layer in model.get_layers())

    def test_running_out_of_memory_takes_fewer_prompts_at_once(
        self, model: Model, directions: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        objective = make_objective(model, directions)
        weights = some_weights(objective)
        expected = sample(objective, weights)
        plain = Objective._logprobs

        def tight(self: Objective, rows: list[list[int]]) -> Tensor:
            if len(rows) > 5:
                raise RuntimeError("out of memory")
            return plain(self, rows)

        monkeypatch.setattr(Objective, "_logprobs", tight)
        found = sample(objective, weights)
        torch.testing.assert_close(found.divergence, expected.divergence, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            found.log_odds_gradients, expected.log_odds_gradients, atol=1e-4, rtol=1e-3
        )

    def test_a_step_waits_for_its_results_once(
        self, model: Model, directions: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is computed of log-probabilities reads no data, and comes back in one small copy."""
        objective = make_objective(model, directions)
        weights = some_weights(objective)
        expected = sample(objective, weights)
        copied: list[int] = []
        plain, logprobs = Tensor.cpu, Objective._logprobs
        watch = _Reads()

        def cpu(tensor: Tensor) -> Tensor:
            copied.append(tensor.numel())
            return plain(tensor)

        def watched(self: Objective, rows: list[list[int]]) -> Tensor:
            with watch.paused():  # a model may look at its mask
                return logprobs(self, rows)

        monkeypatch.setattr(Tensor, "cpu", cpu)
        monkeypatch.setattr(Objective, "_logprobs", watched)
        with watch:
            found = sample(objective, weights)
        rows = len(GOOD) + len(objective.bad)
        assert copied == [rows + (rows + len(GOOD)) * weights.numel()]
        assert not watch.reads
        for name in ("divergence", "divergence_gradients", "probes", "log_odds_gradients"):
            assert torch.equal(getattr(found, name), getattr(expected, name))

    def test_leaves_the_model_alone(self, model: Model, directions: Tensor) -> None:
        before = model.get_logits(GOOD)
        objective = make_objective(model, directions)
        sample(objective, some_weights(objective))
        assert torch.equal(model.get_logits(GOOD), before)
        assert all(p.grad is None and not p.requires_grad for p in model.model.parameters())

    def test_where_no_reply_shows_it_all_bad_prompts_count(
        self, model: Model, directions: Tensor
    ) -> None:
        ablations = {
            writer.name: make_ablation(writer.weight(), directions[writer.layer + 1][None], "none")
            for writer in model.writers
        }
        objective = Objective(model, GOOD, BAD, ablations, lambda reply: False)
        assert objective.bad == list(range(len(BAD)))

    def test_protected_prompts_are_to_stay_and_tell_how_the_behaviour_begins(
        self, model: Model, directions: Tensor
    ) -> None:
        """Replies to them show the behaviour too, so they are not a sign of its opposite."""
        ablations = make_objective(model, directions)._ablations
        bad, protected = BAD[:4], BAD[4:]
        replies = dict(zip(BAD, model.get_responses_batched(BAD, max_new_tokens=32), strict=True))
        told = {replies[prompt] for prompt in [bad[0], *protected]}
        objective = Objective(
            model, GOOD, bad, ablations, lambda reply: reply in told, protected=protected
        )
        assert objective.good == len(GOOD) + len(protected)
        assert objective.bad == [i for i in range(4) if replies[bad[i]] in told]
        first = model.get_logits_batched([bad[0], *protected]).argmax(dim=-1).tolist()
        assert objective.openings.tokens.tolist() == sorted(set(first))

    def test_what_shows_on_protected_prompts_alone_gives_nothing_to_search_by(
        self, model: Model, directions: Tensor
    ) -> None:
        ablations = make_objective(model, directions)._ablations
        bad, protected = BAD[:2], BAD[2:]
        replies = model.get_responses_batched(BAD, max_new_tokens=32)
        told = set(replies[2:]) - set(replies[:2])
        with pytest.raises(StudyError, match="protected"):
            Objective(model, GOOD, bad, ablations, told.__contains__, protected=protected)

    def test_a_forward_that_a_layer_was_given_stays(
        self, model: Model, directions: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Accelerate gives layers a forward that moves inputs between devices."""
        layer = model.get_layers()[1]
        plain, calls = layer.forward, []

        def given(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return plain(*args, **kwargs)

        monkeypatch.setattr(layer, "forward", given)
        monkeypatch.setattr(activations, "MEMORY_SHARE", 0.0)
        objective = make_objective(model, directions)
        sample(objective, some_weights(objective))
        assert vars(layer)["forward"] is given
        assert calls


def made_up(count: int, scale: float, seed: int) -> objectives.Sample:
    """Derivatives like those from a model that refuses firmly."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return objectives.Sample(
        divergence=torch.zeros(16),
        divergence_gradients=0.001 * draw(16, count),
        probes=0.1 * draw(16, count),
        log_odds=6.0 + draw(16),
        log_odds_gradients=-scale * (1 + 0.5 * draw(16, count)),
    )


class TestStep:
    @pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
    def test_ends_where_the_surrogate_is_least(self, scale: float) -> None:
        nothing = torch.zeros(60)
        seen = [Linearisation(nothing, made_up(60, scale, seed)) for seed in range(3)]
        function = _Surrogate(seen, 0.1, DEFAULTS)
        found = _step(seen, nothing, 0.1, DEFAULTS)
        value, slope = function(found.double().numpy())
        assert value < function(nothing.double().numpy())[0]
        inside = found.abs() < DEFAULTS.largest_step - 1e-6
        assert np.abs(slope[inside.numpy()]).max(initial=0.0) < 1e-3

    def test_slope_is_the_values(self) -> None:
        seen = [Linearisation(torch.full((5,), 0.1), made_up(5, 0.5, seed)) for seed in range(2)]
        function = _Surrogate(seen, 0.3, DEFAULTS)
        at = np.linspace(-0.5, 0.5, 5)
        _, slope = function(at)
        for index in range(5):
            moved = np.zeros(5)
            moved[index] = 1e-5
            difference = function(at + moved)[0] - function(at - moved)[0]
            assert slope[index] == pytest.approx(difference / 2e-5, rel=1e-4)

    def test_what_is_not_finite_is_said(self) -> None:
        broken = replace(made_up(4, 1.0, 0), log_odds_gradients=torch.full((16, 4), torch.nan))
        with pytest.raises(StudyError, match="not finite"):
            _step([Linearisation(torch.zeros(4), broken)], torch.zeros(4), 0.1, DEFAULTS)


class TestSweep:
    def test_dearer_trade_offs_refuse_less(self, model: Model, directions: Tensor) -> None:
        objective = make_objective(model, directions)
        start = sample(objective, torch.zeros(objective.shape))
        path = list(sweep(objective, 1, SweepOptions(trade_offs=(0.01, 0.3, 10.0))))
        ends = [sample(objective, weights) for weights in path]
        odds = [end.log_odds.mean().item() for end in ends]
        assert odds[2] < start.log_odds.mean()
        assert odds[2] < odds[0]
        assert ends[0].divergence.mean() < ends[2].divergence.mean()

    def test_same_seed_same_path(self, model: Model, directions: Tensor) -> None:
        objective = make_objective(model, directions)
        first, second, other = (
            list(sweep(objective, seed, SweepOptions(trade_offs=(0.1, 1.0)))) for seed in (4, 4, 5)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not torch.equal(first[-1], other[-1])

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_plans_are_free_form_and_of_the_variant(
        self, model: Model, directions: Tensor, variant: RowNormalization
    ) -> None:
        told = []
        plans = sweep_plans(
            model,
            GOOD,
            BAD,
            directions,
            row_normalization=variant,
            shows=is_shown,
            seed=0,
            on_step=lambda done, total: told.append((done, total)),
        )
        assert [done for done, _ in told] == list(range(1, len(told) + 1))
        assert len(told) <= told[0][1]
        for plan in plans:
            assert plan.row_normalization == variant
            assert plan.direction_scope == "per layer"
            assert all(isinstance(kernel, LayerWeights) for _, kernel in plan.kernels)

    def test_several_directions_make_plans_of_their_rank(
        self, model: Model, directions: Tensor, tmp_path: Path
    ) -> None:
        second = torch.linalg.svd(directions[1:].unsqueeze(1)).Vh[:, 1]
        further = torch.cat([torch.zeros_like(second[:1]), second])
        plans = sweep_plans(
            model,
            GOOD,
            BAD,
            torch.stack([directions, further], dim=1),
            row_normalization="none",
            shows=is_shown,
            seed=0,
        )
        assert {plan.rank for plan in plans} == {2}
        _, kernel = plans[-1].kernels[0]
        assert isinstance(kernel, LayerWeights)
        assert all(len(row) == 2 for row in kernel.layers)
        assert any(row[1] != 0 for row in kernel.layers)


class TestInducing:
    """Inducing: the behaviour becomes likelier, and weights have the opposite sign."""

    def test_a_sweep_makes_the_behaviour_likelier(self, model: Model, directions: Tensor) -> None:
        plans = {
            induce: sweep_plans(
                model,
                GOOD,
                BAD,
                directions,
                row_normalization="full",
                shows=is_shown,
                seed=0,
                induce=induce,
            )[-1]
            for induce in (False, True)
        }
        objective = make_objective(model, directions)

        def likely(plan: Plan) -> float:
            with model.edited(plan, directions):
                rows = model.get_logits_batched(BAD, report=False).log_softmax(dim=-1)
            return float(objective.openings.log_odds(rows).sigmoid().mean())

        original = likely(plan_of(torch.zeros(2, 3, 1), ["attn.o_proj", "mlp.down_proj"], "full"))
        assert likely(plans[False]) < original < likely(plans[True])

    def test_what_never_shows_cannot_be_induced(self, model: Model, directions: Tensor) -> None:
        with pytest.raises(StudyError, match="shows the behaviour to induce"):
            sweep_plans(
                model,
                GOOD,
                BAD,
                directions,
                row_normalization="full",
                shows=lambda reply: False,
                seed=0,
                induce=True,
            )
