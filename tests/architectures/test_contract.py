"""Every model type is asked what must hold of it, and docs/models.md says what came of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.architectures.test_zoo import FAMILIES
from tests.support.contract import NEW_TOKENS, PAGE, Case, result_of, row, streamed
from tests.support.zoo import MODEL_TYPES, text_inputs, tiny_model
from torch import Tensor

from heretic.architectures import resolve, resolver, table
from heretic.architectures.resolver import first_tensor
from heretic.engine.originals import output_lengths, recorded, starting_at
from heretic.errors import ModelError, UnsupportedModelError
from heretic.model.capture import last_residuals
from heretic.model.editing import EditFactory, RowEdits, WeightEditor
from heretic.model.experts import check_variant
from heretic.model.generation import greedy
from heretic.records import LayerWeights, Plan, RowNormalization

LINES = PAGE.read_text(encoding="utf-8").splitlines()
ROWS = {line.split("`")[1]: line for line in LINES if line.startswith("| `")}
PASSING = {name for name, line in ROWS.items() if line.count(" | ") >= 5}
DESCRIBED = f"transformers {transformers.__version__} " in " ".join(LINES)
"""Whether the page describes the installed release, or another (`make newest`)."""

ASKED = MODEL_TYPES if DESCRIBED else tuple(name for name in MODEL_TYPES if name in ROWS)
"""Types that came with another release are asked when the page is written for it."""

FAULTS = {"5.24.0": {"llama4": "image_outputs"}}
"""Faults of other releases: by type, a word of the error that its forward raises there."""


@pytest.mark.parametrize("model_type", ASKED)
def test_every_type_does_what_the_page_says(model_type: str) -> None:
    fault = FAULTS.get(transformers.__version__, {}).get(model_type)
    if fault is not None:
        with pytest.raises(Exception, match=fault):
            result_of(model_type)
        return
    result = result_of(model_type)
    if DESCRIBED:
        assert row(result) in LINES, f"run `make models`: {row(result)}"
    else:  # reasons may be worded differently, but what passes must go on to pass
        assert result.passes or model_type not in PASSING, row(result)
    if model_type in FAMILIES:
        assert result.passes, row(result)


def test_the_page_counts_what_it_lists() -> None:
    """A type is lost, or a reason forgotten, only where somebody sees it."""
    assert f"**{len(PASSING)} of {len(ROWS)} pass**" in PAGE.read_text(encoding="utf-8")
    assert len(ROWS) == len([line for line in LINES if line.startswith("| `")])
    assert not DESCRIBED or set(ROWS) == set(MODEL_TYPES)
    assert set(ROWS) <= set(MODEL_TYPES)


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
        assert known.discovered == known.discoveries() == ()
        _names_without(monkeypatch, "mlp.experts", "self_attn.o_proj")
        found = resolve(model, forward)
        assert found.discovered == ("mlp.experts", "self_attn.o_proj")
        with_experts = {w.layer for w in known.writers if w.expert is not None}
        assert found.discoveries() == (
            f"mlp.experts (taken for mlp.down_proj, in {len(with_experts)} layers)",
            f"self_attn.o_proj (taken for attn.o_proj, in {len(found.layers)} layers)",
        )
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
        ones = LayerWeights(tuple((1.0,) for _ in range(layers)))
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

    def test_a_layer_that_does_not_run_by_itself_is_told_of(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = tiny_model("llama")
        inputs = text_inputs("llama", model.config)
        _names_without(monkeypatch, "mlp.down_proj")
        # As with a cache that was used up: the second run of a layer fails.
        layer = type(model.model.layers[0])
        own, ran = layer.forward, set[int]()

        def once(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.self_attn.layer_idx in ran:
                raise IndexError("the cache is used up")
            ran.add(self.self_attn.layer_idx)
            return own(self, *args, **kwargs)

        monkeypatch.setattr(layer, "forward", once)
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(UnsupportedModelError, match="residual_writers"),
        ):
            resolve(model, lambda: model(**inputs, use_cache=False))
        assert "the cache is used up" in caplog.text


class TestExperts:
    def test_those_stacked_by_rows_are_streamed(self, tmp_path: Path) -> None:
        case = Case.of("dbrx")
        case.model.save_pretrained(tmp_path / "base")
        assert streamed(case, case.plan("full"), tmp_path / "base", tmp_path / "edited")

    def test_those_that_hand_their_input_on_are_left_alone(self) -> None:
        """Also under `none`, where the sum of all others is edited as one."""
        case = Case.of("longcat_flash")
        edits = EditFactory(case.structure.writers).edits(case.plan("none"), case.directions)
        block = case.model.model.layers[0].mlp.experts
        written = len(block.down_proj)
        assert block.total_experts > written
        hidden = torch.randn(5, block.hidden_size, generator=torch.Generator().manual_seed(0))
        weights = torch.full((5, 2), 0.5)

        def ran(expert: int) -> Tensor:
            output: Tensor = block(hidden, torch.full((5, 2), expert), weights)
            return output

        with torch.inference_mode():
            before = [ran(0), ran(written)]
            with RowEdits(case.structure.writers, [edits]).installed():
                after = [ran(0), ran(written)]
        assert not torch.allclose(after[0], before[0], atol=1e-3)
        assert torch.equal(after[1], before[1])

    @pytest.mark.parametrize("variant", ["pre", "full"])
    def test_what_cannot_be_edited_by_a_variant_is_refused_beforehand(
        self, variant: RowNormalization
    ) -> None:
        case = Case.of("mixtral")
        check_variant(case.structure.writers, variant)
        for layer in case.model.model.layers:
            layer.mlp.experts.has_post_expert_norm = True
        check_variant(case.structure.writers, "none")
        with pytest.raises(UnsupportedModelError, match="row_normalization to none"):
            check_variant(case.structure.writers, variant)


@pytest.mark.parametrize("model_type", ["blt", "cpmant", "llama"])
def test_replies_are_what_whole_texts_are_followed_by(model_type: str) -> None:
    """Whatever a model keeps from step to step."""
    case = Case.of(model_type)
    ids = case.inputs["input_ids"]
    found = greedy(
        case.model, ids, torch.ones_like(ids), max_new_tokens=NEW_TOKENS, end=frozenset()
    )
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            following = case.model(input_ids=ids, use_cache=False).logits[:, -1].argmax(dim=-1)
            ids = torch.cat([ids, following.unsqueeze(1)], dim=1)
    assert found == ids[:, -NEW_TOKENS:].tolist()


class TestSeveralStreams:
    """Hyper-connections and AltUp: what stands for the streams, and that no writer is missed."""

    @pytest.fixture(autouse=True)
    def _names_again(self) -> Iterator[None]:
        yield
        resolver._patterns.cache_clear()

    @pytest.mark.parametrize("model_type", ["deepseek_v4", "glm5_next", "hy_v4"])
    def test_the_mean_of_streams_gets_what_is_written_and_nothing_else(
        self, model_type: str
    ) -> None:
        """Under `none` at weight 1, it keeps along the direction what the embedding had."""
        case = Case.of(model_type)
        layers = case.structure.layers
        ids = case.inputs["input_ids"]
        direction = case.directions[0]
        plan = Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={
                name: LayerWeights(tuple((1.0,) for _ in layers))
                for name in {writer.component for writer in case.structure.writers}
            },
            row_normalization="none",
        )
        everywhere = direction.expand_as(case.directions)
        edits = EditFactory(case.structure.writers).edits(plan, everywhere)

        def gained() -> Tensor:
            along = last_residuals(case.model, layers, ids, torch.ones_like(ids)) @ direction
            return (along[:, 1:] - along[:, :1]).abs()

        before = gained()
        with RowEdits(case.structure.writers, [edits]).installed():
            assert float(gained().max()) < 1e-3 * float(before.max())

    def test_of_altup_the_active_stream_counts(self) -> None:
        case = Case.of("gemma3n_text")
        ids = case.inputs["input_ids"]
        layers = case.structure.layers
        outputs: list[Tensor] = []
        handle = layers[1].register_forward_hook(lambda module, args, out: outputs.append(out))
        found = last_residuals(case.model, layers, ids, torch.ones_like(ids))
        handle.remove()
        active = case.model.config.altup_active_idx
        torch.testing.assert_close(found[:, 2], outputs[0][active, :, -1])

    @pytest.mark.parametrize(
        ("model_type", "path"),
        [
            ("deepseek_v4", "self_attn.o_b_proj"),
            ("gemma3n_text", "laurel.linear_right"),
            ("gemma3n_text", "self_attn.o_proj"),
            ("hy_v4", "mlp.experts"),
            ("qwen4_exp_text", "mlp.shared_expert.down_proj"),
        ],
    )
    def test_a_missed_writer_is_found_or_an_error(
        self, monkeypatch: pytest.MonkeyPatch, model_type: str, path: str
    ) -> None:
        case = Case.of(model_type)
        _names_without(monkeypatch, path)
        found = resolve(case.model, case.logits)
        assert found.discovered == (path,)
        assert [w.name for w in found.writers] == [w.name for w in case.structure.writers]
        with pytest.raises(UnsupportedModelError, match="residual_writers"):
            resolve(case.model, case.logits, by_hand=["none beyond the table"])

    @pytest.mark.parametrize("model_type", ["deepseek_v4", "gemma3n_text", "qwen4_exp_text"])
    def test_half_precision_tells_the_same(self, model_type: str) -> None:
        """Rounding neither hides a writer nor looks like one."""
        exact = Case.of(model_type).structure.writers
        model = tiny_model(model_type, dtype=torch.bfloat16)
        inputs = text_inputs(model_type, model.config, length=12)
        rounded = resolve(model, lambda: model(**inputs, use_cache=False)).writers
        assert [writer.name for writer in rounded] == [writer.name for writer in exact]
        assert [w.gains is None for w in rounded] == [w.gains is None for w in exact]

    def test_streams_in_an_unknown_layout_are_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tiny_model("hy_v4")
        inputs = text_inputs("hy_v4", model.config)
        monkeypatch.delitem(table.STREAMS, "HYV4DecoderLayer")
        with pytest.raises(UnsupportedModelError, match="several residual streams"):
            resolve(model, lambda: model(**inputs))

    @pytest.mark.parametrize("model_type", ["gemma3n_text", "hy_v4"])
    def test_a_layer_can_be_given_what_was_recorded(self, model_type: str) -> None:
        """Recorded with rows first, it is what the layer would have had from the one before."""
        case = Case.of(model_type)
        layers = case.structure.layers
        wanted: list[Tensor] = []
        handle = layers[0].register_forward_hook(
            lambda module, args, out: wanted.append(first_tensor(out))
        )
        with output_lengths(layers) as lengths, recorded(layers, [1]) as inputs:
            case.logits()
        handle.remove()
        given = inputs[1]
        assert given.shape[:2] == case.inputs["input_ids"].shape
        with starting_at(layers, 1, given, lengths):
            before = first_tensor(layers[0](None))
        assert before.shape == wanted[0].shape
        assert torch.equal(before, wanted[0])


@pytest.mark.parametrize("model_type", ["rwkv", "qwen4_exp_text"])
def test_a_writer_behind_a_gate_is_named_once(model_type: str) -> None:
    names = [writer.name for writer in resolver.find_writers(tiny_model(model_type))]
    assert len(names) == len(set(names))


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
        with pytest.raises(ModelError, match="row_normalization = 'none'"):
            check_variant(case.structure.writers, variant)

    def test_they_are_not_written_to(self, case: Case) -> None:
        edits = EditFactory(case.structure.writers).edits(case.plan("none"), case.directions)
        with pytest.raises(ModelError, match="quantised"):
            WeightEditor(case.structure.writers).apply(edits)


def _unpacking(module: Any, inputs: Tensor) -> Tensor:
    output: Tensor = inputs @ (module.weight.float() / 16).T
    return output
