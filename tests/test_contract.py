"""Every model type is asked what must hold of it, and docs/models.md says what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from heretic.architectures import resolve, resolver, table
from heretic.errors import ModelError, UnsupportedModelError
from heretic.model.editing import EditFactory, RowEdits, WeightEditor
from heretic.records import Plan, RowNormalization, Weights
from tests.contract import PAGE, Case, result_of, row
from tests.test_zoo import FAMILIES
from tests.zoo import MODEL_TYPES, text_inputs, tiny_model

LINES = PAGE.read_text(encoding="utf-8").splitlines()

SEVERAL = {"deepseek_v4", "gemma3n", "gemma3n_text"}
ONE_STREAM = tuple(name for name in FAMILIES if name not in SEVERAL)
"""The specification's families, but for those with several residual streams."""


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_type_does_what_the_page_says(model_type: str) -> None:
    result = result_of(model_type)
    assert row(result) in LINES, f"run `make models`: {row(result)}"
    if model_type in ONE_STREAM:
        assert result.passes, row(result)


def test_the_page_counts_what_it_lists() -> None:
    """A type is lost, or a reason forgotten, only where somebody sees it."""
    rows = [line for line in LINES if line.startswith("| `")]
    passing = [line for line in rows if line.count(" | ") >= 5]
    assert len(rows) == len(MODEL_TYPES)
    assert f"**{len(passing)} of {len(rows)} pass**" in PAGE.read_text(encoding="utf-8")


def _names_without(monkeypatch: pytest.MonkeyPatch, *paths: str) -> None:
    kept = {
        name: tuple(path for path in known if path not in paths)
        for name, known in table.WRITERS.items()
    }
    monkeypatch.setattr(resolver, "WRITERS", kept)
    resolver._patterns.cache_clear()


class TestResolver:
    @pytest.fixture(autouse=True)
    def _names_again(self) -> Iterator[None]:
        yield
        resolver._patterns.cache_clear()

    def test_writers_that_the_table_does_not_name_are_found(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tiny_model("qwen2_moe")
        inputs = text_inputs("qwen2_moe", model.config)

        def forward() -> object:
            return model(**inputs, use_cache=False)

        known = resolve(model, forward)
        assert known.discovered == ()
        _names_without(monkeypatch, "mlp.experts", "self_attn.o_proj")
        found = resolve(model, forward)
        assert found.discovered == ("mlp.experts", "self_attn.o_proj")
        assert [w.name for w in found.writers] == [w.name for w in known.writers]
        assert [w.component for w in found.writers] == [w.component for w in known.writers]

    def test_what_is_named_by_hand_must_add_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_model("llama")
        inputs = text_inputs("llama", model.config)
        _names_without(monkeypatch, "mlp.down_proj")
        with pytest.raises(UnsupportedModelError, match=r"residual_writers.*mlp\.down_proj"):
            resolve(model, lambda: model(**inputs), ["mlp.up_proj"])
        by_hand = resolve(model, lambda: model(**inputs), ["mlp.down_proj"])
        assert len(by_hand.writers) == 2 * len(by_hand.layers)

    def test_a_norm_after_the_writer_is_told_from_one_before(self) -> None:
        gains = {
            name: [writer.gains for writer in Case.of(name).structure.writers]
            for name in ("llama", "gemma2")
        }
        assert all(gain is None for gain in gains["llama"])
        model = Case.of("gemma2").model
        layer = model.model.layers[0]
        wanted = [layer.post_attention_layernorm, layer.post_feedforward_layernorm]
        for norm, gain in zip(wanted, gains["gemma2"][:2], strict=True):
            assert gain is not None
            torch.testing.assert_close(gain, 1 + norm.weight.detach(), rtol=1e-3, atol=1e-4)

    def test_after_a_norm_the_direction_is_gone_from_the_stream(self) -> None:
        """Under `none` at weight 1, what enters the stream has nothing along the direction."""
        case = Case.of("gemma2")
        layers = len(case.structure.layers)
        ones = Weights(tuple((1.0,) for _ in range(layers)))
        plan = Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={"attn.o_proj": ones, "mlp.down_proj": ones},
            row_normalization="none",
        )
        edits = EditFactory(case.structure.writers).edits(plan, case.directions)
        found = []
        norm = case.model.model.layers[0].post_attention_layernorm
        with RowEdits(case.structure.writers, [edits]).installed():
            handle = norm.register_forward_hook(lambda m, args, out: found.append(out))
            case.logits()
            handle.remove()
        along = found[0] @ case.directions[1]
        assert float(along.abs().max()) < 1e-4 * float(found[0].norm(dim=-1).max())


class TestPacked:
    """Weights in a form that nobody here can read: a stand-in for FP8, GPTQ, AWQ and the like."""

    @pytest.fixture
    def case(self) -> Case:
        case = Case.of("llama")
        for writer in case.structure.writers:
            module: Any = writer.module
            packed = (module.weight * 16).round().to(torch.int8)
            module.weight = torch.nn.Parameter(packed, requires_grad=False)
            module.forward = partial(_unpacking, module)
        return case

    def test_they_are_searched_under_none(self, case: Case) -> None:
        before = case.logits()
        edits = EditFactory(case.structure.writers).edits(case.plan("none"), case.directions)
        assert set(edits) == {writer.name for writer in case.structure.writers}
        with RowEdits(case.structure.writers, [edits]).installed():
            assert not torch.equal(case.logits(), before)

    @pytest.mark.parametrize("variant", ["pre", "full"])
    def test_other_variants_say_what_to_do(self, case: Case, variant: RowNormalization) -> None:
        with pytest.raises(ModelError, match="row_normalization = 'none'"):
            EditFactory(case.structure.writers).edits(case.plan(variant), case.directions)

    def test_they_are_not_written_to(self, case: Case) -> None:
        edits = EditFactory(case.structure.writers).edits(case.plan("none"), case.directions)
        with pytest.raises(ModelError, match="quantised"):
            WeightEditor(case.structure.writers).apply(edits)


def _unpacking(module: Any, inputs: Tensor) -> Tensor:
    output: Tensor = inputs @ (module.weight.float() / 16).T
    return output
