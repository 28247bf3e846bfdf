"""Models whose layers carry states, or see only a window, share batches like all others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.test_engine import (
    BAD,
    Collector,
    edited,
    first_logits,
    load,
    mixed_edits_of,
)
from tests.support import tiny
from tests.support.zoo import tiny_folder, tiny_model

from heretic.engine.engine import Engine
from heretic.engine.layout import Kept, Layout
from heretic.engine.layouts import layout_of
from heretic.engine.opening import open_engine
from heretic.engine.plain import PlainEngine
from heretic.engine.slots import SlotCache
from heretic.engine.states import Carried
from heretic.method.edits import OutputEdit
from heretic.model import Model, capture
from heretic.model.generation import carried_bytes

CARRYING = (
    *("bamba", "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2"),
    *("nemotron_h", "qwen3_5_text", "qwen3_next", "zamba"),
)
"""With state spaces, delta nets or convolutions, alone or beside attention."""

WINDOWED = ("cohere2", "gemma2", "gemma3_text", "gpt_oss", "llama4_text", "mistral")
"""With layers that see a window or a chunk of 16 tokens, which every row here exceeds."""

SHARING = ("gemma3n_text", "gemma4_text")
"""Later layers read keys and values that earlier ones hand on; windows too."""


SOME, TOKENS = BAD[:6], 4


def opened(model: Model) -> Engine:
    engine = open_engine(model, {"bad": SOME}, replied={"bad"}, max_new_tokens=TOKENS)
    assert isinstance(engine, Engine)
    return engine


def alone(model: Model, edits: dict[str, OutputEdit], tokens: int = TOKENS) -> list[str | None]:
    """Replies of one plan, without the engine."""
    (found,) = PlainEngine(model, {"bad": SOME}, max_new_tokens=tokens).replies("bad", [edits])
    return found


@pytest.mark.parametrize("name", [*CARRYING, *WINDOWED, *SHARING])
def test_plans_in_shared_batches_give_what_each_gives_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few slots rows leave, others take their places, and all ages share a batch."""
    reporter = Collector()
    model = load(tiny_folder(tmp_path, name), reporter, batch_size=4)
    monkeypatch.setattr("heretic.engine.shapes.SPARE_COLUMNS", 0)
    engine = opened(model)
    assert engine.layout.carries == (name in CARRYING)
    assert bool(engine.layout.window or engine.layout.chunk) == (name not in CARRYING)
    assert bool(reporter.warnings) == (name in SHARING)
    plans = [*mixed_edits_of(model)[:2], {}]
    assert engine.replies("bad", plans) == [alone(model, plan) for plan in plans]
    with edited(model, plans[0]):
        expected = model.get_logits_batched(SOME)
    found = first_logits(engine, "bad", plans[0])
    assert capture.divergence(expected, found) < capture.TOLERANCES[4]


@pytest.mark.parametrize("name", ["falcon_h1", "qwen3_next"])
def test_a_plan_that_edits_only_late_layers_starts_there(name: str, tmp_path: Path) -> None:
    """What the layers below carry comes from the original's states."""
    model = load(tiny_folder(tmp_path, name))
    engine = Engine(model, {"bad": SOME}, replied={"bad"}, max_new_tokens=2, kept_share=math.inf)
    engine.replies("bad", [{}])  # records the original's states
    writers = {w.name for w in model.writers if w.layer == model.n_layers - 1}
    late = {name: edit for name, edit in mixed_edits_of(model)[0].items() if name in writers}
    expected = alone(model, late, 2)
    passes: list[Any] = []
    # It does not run where the layer is skipped.
    norm = model.get_layers()[0].get_submodule("input_layernorm")
    norm.register_forward_pre_hook(lambda module, given: passes.append(module))
    assert engine.replies("bad", [late]) == [expected]
    assert len(passes) == 1  # the decoding step of all rows, and no prefill


def test_rows_with_a_convolution_leave_plain_decoding_one_by_one(tmp_path: Path) -> None:
    """The cache of such layers has other ways of choosing rows than that of keys and values."""
    model = load(tiny_folder(tmp_path, "lfm2"))
    whole = [str(text) for text in alone(model, {})]
    end = next(c for c in sorted("".join(whole)) if not all(c in text for text in whole))
    engine = PlainEngine(model, {"bad": SOME}, max_new_tokens=TOKENS)
    (found,) = engine.replies("bad", [{}], decided=lambda text: end in text)
    expected = [text[: text.index(end) + 1] if end in text else text for text in whole]
    assert found == expected != whole


class TestLayout:
    def test_windows_that_no_row_exceeds_play_no_part(self) -> None:
        layout = Layout((Kept(),), window=16, chunk=8)
        assert layout.for_rows(16).window is None
        assert layout.for_rows(17).window == 16
        assert layout.for_rows(8).chunk is None

    @pytest.mark.parametrize(
        ("name", "layers"),
        [
            ("llama", {Kept()}),
            ("mamba2", {Kept(keys=False, states=1)}),
            ("qwen3_next", {Kept(), Kept(keys=False, states=1)}),
            ("falcon_h1", {Kept(keys=True, states=1)}),
        ],
    )
    def test_layers_keep_what_their_kind_needs(self, name: str, layers: set[Kept]) -> None:
        model = tiny_model(name)
        assert set(layout_of(model, model.config.num_hidden_layers).layers) == layers

    def test_windows_count_tokens_and_not_columns(self) -> None:
        """Padding between a row's head and its tail takes columns, and no positions."""
        layout = Layout((Kept(), Kept()), window=2)
        columns = torch.tensor([[0, 1, 1, 1, 2, 3]])  # two columns of padding
        seen = torch.tensor([[[True, True, False, False, True, False]]])
        masks = layout.masks(seen, torch.tensor([[2]]), None, lambda: columns)
        assert isinstance(masks, dict)
        assert masks["full_attention"] is seen
        assert masks["sliding_attention"].tolist() == [[[False, True, False, False, True, False]]]

    def test_chunks_begin_at_multiples(self) -> None:
        layout = Layout((Kept(), Kept()), chunk=3)
        seen = torch.ones(1, 1, 5, dtype=torch.bool)
        masks = layout.masks(seen, torch.tensor([[4]]), None, lambda: torch.arange(5).unsqueeze(0))
        assert isinstance(masks, dict)
        assert masks["chunked_attention"].tolist() == [[[False, False, False, True, True]]]


class TestCarriedStates:
    def test_they_move_with_their_rows(self) -> None:
        layout = Layout((Kept(), Kept(keys=False, states=1)))
        cache = SlotCache(layout, 4, 6, torch.device("cpu"))
        states: Carried = [(1, {("recurrent", 0): torch.arange(8.0).view(4, 2)})]
        cache.write_carried(states, first=0)
        cache.move_rows([3], [0], begin=0, end=6)
        ((index, found),) = cache.read_carried(0, 2, below=2)
        assert index == 1
        assert found["recurrent", 0].tolist() == [[6, 7], [2, 3]]
        assert cache.read_carried(0, 2, below=1) == []

    @pytest.mark.parametrize("name", ["qwen3_next", "mamba", "falcon_h1"])
    def test_their_size_is_what_a_slot_takes(self, name: str, tmp_path: Path) -> None:
        model = load(tiny_folder(tmp_path, name), batch_size=3)
        engine = opened(model)
        engine.replies("bad", [{}])
        assert engine._decoder is not None
        carried = engine._decoder.cache.read_carried(0, 1, below=model.n_layers)
        sizes = [x.numel() * x.element_size() for _, states in carried for x in states.values()]
        assert sum(sizes) == model.carried_bytes == model.sizes().carried > 0

    def test_a_model_without_any_has_none(self, tmp_path: Path) -> None:
        assert carried_bytes(tiny.model()) == 0


def test_endings_are_read_one_by_one_where_states_are_carried(tmp_path: Path) -> None:
    from tests.engine.test_endings import ITEMS

    reporter = Collector()
    model = load(tiny_folder(tmp_path, "qwen3_next"), reporter)
    engine = open_engine(
        model, {"bad": BAD}, replied={"bad"}, max_new_tokens=2, items={"items": ITEMS}
    )
    assert isinstance(engine, Engine)
    assert [text for text in reporter.warnings if "carry states from one ending" in text]
