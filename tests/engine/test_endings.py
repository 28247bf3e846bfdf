"""Endings read in one row per item are predicted as each is alone, under every plan."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.test_engine import MORE_FAMILIES, Collector, edited, edits_of, load
from tests.support import tiny
from torch import Tensor

from heretic.engine.engine import Engine
from heretic.engine.opening import open_engine
from heretic.engine.plain import PlainEngine
from heretic.engine.prefill import Techniques
from heretic.errors import PromptError
from heretic.model import Model
from heretic.model.endings import encode_items, plain_endings
from heretic.model.outputs import Endings
from heretic.prompts import Item

ITEMS = [
    Item("Ice in the sun", None, None, ("melts", "sings a song", "is late"), 0),
    Item("Two and two are", None, None, ("four", "five"), 0),
    Item("The cat chased the mouse. It was a fast", None, None, ("mouse",), 0),
    Item("A", None, None, ("b", "c", "d", "e"), 2, ""),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(tiny.folder(tmp_path_factory.mktemp("llama")))


def opened(model: Model, **options: Any) -> Engine | PlainEngine:
    return open_engine(
        model,
        {"bad": tiny.BAD_PROMPTS},
        replied={"bad"},
        max_new_tokens=2,
        items={"items": ITEMS},
        **options,
    )


def naive(model: Model, item: Item, ending: str) -> tuple[float, int, bool]:
    """The log-likelihood of one ending, from one row without padding; of tiny.tokenizer's bytes."""
    start = model.tokenizer(item.user, add_special_tokens=False).input_ids
    whole = model.tokenizer(
        f"{item.user}{item.delimiter}{ending}", add_special_tokens=False
    ).input_ids
    with torch.inference_mode():
        logits = model.model(torch.tensor([whole])).logits[0].double()
    places = range(len(start), len(whole))
    logprobs = logits.log_softmax(dim=-1)
    total = sum(float(logprobs[n - 1, whole[n]]) for n in places)
    return total, len(places), all(int(logits[n - 1].argmax()) == whole[n] for n in places)


def assert_naive(model: Model, found: Endings) -> None:
    assert found.logprobs.shape == found.tokens.shape == found.greedy.shape == (len(ITEMS), 4)
    for row, item in enumerate(ITEMS):
        for place, ending in enumerate(item.endings):
            logprob, tokens, greedy = naive(model, item, ending)
            assert float(found.logprobs[row, place]) == pytest.approx(logprob, abs=1e-4)
            assert int(found.tokens[row, place]) == tokens
            assert bool(found.greedy[row, place]) is greedy
        assert found.logprobs[row, len(item.endings) :].isnan().all()
        assert not found.tokens[row, len(item.endings) :].any()


def equal(one: Endings, other: Endings) -> bool:
    return all(
        torch.equal(getattr(one, name).nan_to_num(), getattr(other, name).nan_to_num())
        for name in ("logprobs", "tokens", "greedy")
    )


@pytest.mark.parametrize("name", sorted(MORE_FAMILIES))
def test_a_family_reads_packed_endings_as_it_reads_each_alone(name: str, tmp_path: Path) -> None:
    reporter = Collector()
    family = load(tiny.folder(tmp_path, name, **MORE_FAMILIES[name]), reporter)
    engine = opened(family)
    assert isinstance(engine, Engine)
    assert engine.sets == ["bad", "items"]
    assert not reporter.warnings
    for plan in edits_of(family, 0.0, 1.5, 0.8, 2.0):
        found = engine.endings("items", plan)
        with edited(family, plan):
            assert_naive(family, found)


@pytest.mark.parametrize("slots", [1, 2, 64])
@pytest.mark.parametrize(
    "techniques",
    [
        Techniques(),
        Techniques(share_head=False),
        Techniques(reuse_originals=False),
        Techniques(share_batches=False),
    ],
)
def test_neither_slots_nor_techniques_matter(
    llama: Model, slots: int, techniques: Techniques, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "batch_size", slots)
    monkeypatch.setattr("heretic.engine.engine.KEPT_SHARE", math.inf)
    engine = opened(llama, techniques=techniques)
    for plan in edits_of(llama, 1.5, 0.8):
        found = engine.endings("items", plan)
        with edited(llama, plan):
            assert_naive(llama, found)


def test_no_plan_changes_what_another_gives(llama: Model) -> None:
    engine = opened(llama)
    plans = edits_of(llama, 1.5, 0.8, 2.0)
    alone = [opened(llama).endings("items", plan) for plan in plans]
    for plan, expected in [*zip(plans, alone, strict=True)][::-1]:
        engine.replies("bad", plans)
        assert equal(engine.endings("items", plan), expected)
    assert not equal(alone[0], alone[1])


def test_a_head_that_all_contexts_share_is_read_once(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Item(f"Once upon a time {item.user}", None, None, item.endings) for item in ITEMS]
    engine = open_engine(llama, {}, replied=(), max_new_tokens=1, items={"items": items})
    assert isinstance(engine, Engine)
    sizes: list[tuple[int, ...]] = []
    step = Model.step

    def counted(self: Model, tokens: Tensor, *rest: Any) -> Tensor:
        sizes.append(tuple(tokens.shape))
        return step(self, tokens, *rest)

    monkeypatch.setattr(Model, "step", counted)
    found = engine.endings("items", {})
    head = len("Once upon a time ")
    longest = max(len(item.packed) for item in encode_items(llama, items))
    # Once with the original, to record its states, and once with the plan.
    assert sizes == 2 * [(1, head), (len(items), longest - head)]
    expected = plain_endings(llama, encode_items(llama, items))
    torch.testing.assert_close(found.logprobs, expected.logprobs, equal_nan=True, rtol=0, atol=1e-4)


def test_packing_that_goes_wrong_is_noticed_and_only_endings_are_read_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = Collector()
    model = load(tiny.folder(tmp_path), reporter)
    monkeypatch.setattr(
        "heretic.engine.originals.EncodedPrompts.branch_out", lambda *arguments: None
    )
    engine = opened(model)
    assert isinstance(engine, Engine)
    assert engine.sets == ["bad"]
    assert [text for text in reporter.warnings if "endings of items are read one by one" in text]
    (plan,) = edits_of(model, 1.5)
    found = engine.endings("items", plan)
    with edited(model, plan):
        assert_naive(model, found)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_items_beyond_a_sliding_window_are_packed_too(family: str, tmp_path: Path) -> None:
    """Each branch counts its window from where the branches begin."""
    reporter = Collector()
    sizes: dict[str, Any] = {"sliding_window": 8}
    if family == "gemma3_text":
        sizes["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    path = tiny.folder(tmp_path, family, **sizes)
    model = load(path, reporter)
    engine = opened(model)
    assert isinstance(engine, Engine)
    assert engine.sets == ["bad", "items"]
    assert not reporter.warnings
    (plan,) = edits_of(model, 1.5)
    found = engine.endings("items", plan)
    with edited(model, plan):
        assert_naive(model, found)


def test_items_beyond_all_positions_do_not_slow_the_replies(tmp_path: Path) -> None:
    reporter = Collector()
    size = 2 + max(map(len, load(tiny.folder(tmp_path / "a")).encode_rows(tiny.BAD_PROMPTS)))
    model = load(tiny.folder(tmp_path / "b", max_position_embeddings=size), reporter)
    long = Item("x " * size, None, None, ("y", "z"))
    engine = open_engine(
        model,
        {"bad": tiny.BAD_PROMPTS},
        replied={"bad"},
        max_new_tokens=2,
        items={"items": [long]},
    )
    assert isinstance(engine, Engine)
    assert engine.sets == ["bad"]
    assert [text for text in reporter.warnings if f"window of {size}" in text]


def test_a_token_across_the_border_belongs_to_the_ending(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with tokenizers that merge the end of a context with the beginning of an ending."""
    rows = {"ab": [1, 2], "abc": [1, 9], "abd": [1, 2, 3]}
    monkeypatch.setattr(llama.renderer, "token_ids", lambda texts: [rows[text] for text in texts])
    (item,) = encode_items(llama, [Item("ab", None, None, ("c", "d"), 0, "")])
    assert (item.context, item.endings) == ([1], [[9], [2, 3]])
    assert item.packed == [1, 2]
    assert item.sources == [[0], [0, 1]]


def test_a_context_without_a_token_of_its_own_is_refused(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"a": [1], "ac": [9], "ad": [1, 3]}
    monkeypatch.setattr(llama.renderer, "token_ids", lambda texts: [rows[text] for text in texts])
    with pytest.raises(PromptError, match="no tokens of their own for the context 'a'"):
        encode_items(llama, [Item("a", None, None, ("c", "d"), 0, "")])


def test_items_longer_than_the_models_positions_are_refused(tmp_path: Path) -> None:
    model = load(tiny.folder(tmp_path, "gpt2", **MORE_FAMILIES["gpt2"]))
    assert model.limits.positions is not None
    with pytest.raises(PromptError, match="positions"):
        encode_items(model, [Item("x " * model.limits.positions, None, None, ("y", "z"))])
