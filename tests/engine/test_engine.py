"""Plans in a shared batch give the same results as each plan alone, with less work."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.model.test_model import FAMILIES, GPT2_SIZES
from tests.support import tiny
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional

from heretic.config import Settings
from heretic.engine.batch import Batch, Request
from heretic.engine.engine import Engine
from heretic.engine.layout import Kept, Layout
from heretic.engine.opening import open_engine
from heretic.engine.originals import EncodedPrompts, checkpoint_layers
from heretic.engine.plain import PlainEngine
from heretic.engine.prefill import KEPT_SHARE, Pair, Techniques
from heretic.engine.shapes import SCHEDULES, Schedule
from heretic.engine.slots import SlotCache, States
from heretic.events import Event, Notice
from heretic.method.edits import OutputEdit
from heretic.model import AbliterationParameters, Model, generation
from heretic.model.editing import RowEdits
from heretic.records import AnyKernel, LayerWeights, Plan, RowNormalization
from heretic.scorers.keyword import has_marker, is_refusal

LENGTH = 7
BAD, GOOD = tiny.BAD_PROMPTS, tiny.GOOD_PROMPTS
MORE_FAMILIES: dict[str, dict[str, Any]] = {
    **FAMILIES,
    "falcon": {},
    "gpt_bigcode": GPT2_SIZES,
    "olmo": {},
    "qwen3": {"head_dim": 8},
    "stablelm": {},
}
"""Families that the engine takes, by their tiny sizes."""


class Collector:
    """Keeps events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    @property
    def warnings(self) -> list[str]:
        return [e.text for e in self.events if isinstance(e, Notice) and e.level == "warning"]


def load(path: Path, reporter: Collector | None = None, **overrides: Any) -> Model:
    values = {"dtypes": ["float32"], "response_prefix": "", "batch_size": 64, **overrides}
    return Model(Settings(model=str(path), **values), reporter)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(tiny.folder(tmp_path_factory.mktemp("llama")))


def with_cache_called(name: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the model a forward that calls its cache `name`, as other releases do."""
    own = generation.cache_argument(model.model)
    plain = type(model.model).forward

    def forward(self: Any, *args: Any, **given: Any) -> Any:
        if name in given:
            given[str(own)] = given.pop(name)
        return plain(self, *args, **given)

    known = inspect.signature(plain)
    forward.__signature__ = known.replace(  # type: ignore[attr-defined]
        parameters=[p.replace(name=name) if p.name == own else p for p in known.parameters.values()]
    )
    renamed = type("Renamed", (type(model.model),), {"forward": forward})
    monkeypatch.setattr(model.model, "__class__", renamed)


def edits_of(model: Model, *weights: float) -> list[dict[str, OutputEdit]]:
    """One plan per weight, with all variants in turn; later plans begin at later layers."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(model.n_layers + 1, model.hidden_size, generator=generator)
    variants: tuple[RowNormalization, ...] = ("full", "none", "pre")
    plans = [
        Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={
                "attn": AbliterationParameters(weight, 2.0, weight / 2, 2.0 - index % 3),
                "mlp": AbliterationParameters(weight / 2, 2.0, weight, 1.0),
            },
            row_normalization=variants[index % 3],
        )
        for index, weight in enumerate(weights)
    ]
    directions = functional.normalize(rows, dim=-1)
    return [model.plan_edits(plan, directions) for plan in plans]


def mixed_edits_of(model: Model) -> list[dict[str, OutputEdit]]:
    """Plans of rank 1 and 2, with kernels and free-form, of all variants, and one without edits."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(model.n_layers + 1, model.hidden_size, 2, generator=generator)
    directions = torch.linalg.qr(rows).Q.mT.contiguous()
    kernel = AbliterationParameters(1.4, 2.0, 0.5, 2.0)
    late = LayerWeights(((), (), (1.5, 0.7)))
    free = LayerWeights(((0.9, -0.4), (), (0.0, 1.2)))
    given: list[tuple[RowNormalization, int, AnyKernel, AnyKernel]] = [
        ("full", 1, kernel, kernel),
        ("pre", 2, free, kernel),
        ("none", 2, kernel, late),
        ("full", 2, late, free),
        ("none", 1, free, late),
        ("full", 1, LayerWeights(()), LayerWeights(())),
    ]
    plans = [
        Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={"attn": attention, "mlp": mlp},
            row_normalization=variant,
            rank=rank,
        )
        for variant, rank, attention, mlp in given
    ]
    return [model.plan_edits(plan, directions) for plan in plans]


@contextmanager
def edited(model: Model, edits: dict[str, OutputEdit]) -> Iterator[None]:
    with RowEdits(model.writers, [edits]).installed():
        yield


def plain_replies(model: Model, edits: dict[str, OutputEdit]) -> list[str]:
    with edited(model, edits):
        return model.get_responses_batched(BAD, max_new_tokens=LENGTH)


def first_logits(
    engine: Engine | PlainEngine,
    name: str,
    edits: dict[str, OutputEdit],
    on_step: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Raw logits of the first generated token, float32 [prompts, vocabulary], of one plan."""
    found: dict[int, Tensor] = {}

    def take(pairs: Sequence[Pair], logits: Tensor) -> None:
        rows = logits.to(torch.float32, copy=True)
        found.update((prompt, row) for (_, prompt), row in zip(pairs, rows, strict=True))

    engine.first_tokens(name, [edits], take, on_step)
    return torch.stack([found[prompt] for prompt in sorted(found)])


def engine_of(
    model: Model,
    length: int = LENGTH,
    techniques: Techniques | None = None,
    kept_share: float = KEPT_SHARE,
) -> Engine:
    return Engine(
        model,
        {"good": GOOD, "bad": BAD},
        replied={"bad"},
        max_new_tokens=length,
        techniques=techniques,
        kept_share=kept_share,
    )


class TestSameAsPlain:
    """Each row gives the same result as alone, whatever else is in its batch."""

    @pytest.mark.parametrize("name", sorted(MORE_FAMILIES))
    def test_a_family_takes_the_fast_way_and_agrees(self, name: str, tmp_path: Path) -> None:
        family = load(tiny.folder(tmp_path, name, **MORE_FAMILIES[name]))
        plans = edits_of(family, 1.5, 0.8, 2.0, 0.0)
        engine = open_engine(
            family, {"good": GOOD, "bad": BAD}, replied={"bad"}, max_new_tokens=LENGTH
        )
        assert isinstance(engine, Engine)
        together = engine.replies("bad", plans)
        assert together == [plain_replies(family, plan) for plan in plans]
        assert len({tuple(texts) for texts in together}) > 1  # the plans make a difference
        for plan in plans:
            with edited(family, plan):
                expected = family.get_logits(GOOD)
            torch.testing.assert_close(
                first_logits(engine, "good", plan), expected, rtol=1e-4, atol=1e-4
            )

    @pytest.mark.parametrize("slots", [3, 64])
    def test_ranks_and_forms_of_plans_may_differ(
        self, llama: Model, slots: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(llama, "batch_size", slots)
        plans = mixed_edits_of(llama)
        assert {len(edit.read) for plan in plans for edit in plan.values()} == {1, 2}
        engine = engine_of(llama)
        together = engine.replies("bad", plans)
        assert together == [plain_replies(llama, plan) for plan in plans]
        assert len({tuple(texts) for texts in together}) == len(plans)
        for plan in plans:
            with edited(llama, plan):
                expected = llama.get_logits(GOOD)
            torch.testing.assert_close(
                first_logits(engine, "good", plan), expected, rtol=1e-4, atol=1e-4
            )

    @pytest.mark.parametrize("name", ["batch_size", "tokens of a pass"])
    def test_one_row_at_a_time_is_the_fast_way_too(
        self, llama: Model, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if name == "batch_size":
            monkeypatch.setattr(llama, "batch_size", 1)
        else:
            monkeypatch.setattr("heretic.engine.prefill.TOKENS_ON_CPU", 1)
        engine = open_engine(llama, {"good": GOOD, "bad": BAD}, replied={"bad"}, max_new_tokens=2)
        assert isinstance(engine, Engine)

    @pytest.mark.parametrize("slots", [1, 3, 7, 40])
    @pytest.mark.parametrize(
        "techniques",
        [
            Techniques(),
            Techniques(share_head=False),
            Techniques(reuse_originals=False),
            Techniques(refill=False),
        ],
    )
    def test_neither_slots_nor_techniques_matter(
        self, llama: Model, slots: int, techniques: Techniques, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(llama, "batch_size", slots)
        # Few prompts per pass: rows of all ages are in the batch together, and it has to move.
        monkeypatch.setattr("heretic.engine.prefill.TOKENS_ON_CPU", 60)
        monkeypatch.setattr("heretic.engine.shapes.SPARE_COLUMNS", 1)
        plans = edits_of(llama, 1.5, 0.8, 2.0, 0.0)
        engine = engine_of(llama, techniques=techniques, kept_share=math.inf)
        assert engine.replies("bad", plans) == [plain_replies(llama, plan) for plan in plans]

    def test_plans_may_bring_a_batch_each(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(llama, "batch_size", 5)
        monkeypatch.setattr(llama, "_most_rows", 17)
        assert [llama.rows_together(plans) for plans in (1, 2, 3, 4)] == [5, 10, 15, 17]
        plans = edits_of(llama, 1.5, 0.8, 2.0)
        engine = engine_of(llama)
        assert engine.replies("bad", plans) == [plain_replies(llama, plan) for plan in plans]
        assert engine._decoder is not None
        assert engine._decoder.cache.slots == 15
        done: list[int] = []
        first_logits(engine, "good", plans[0], on_step=done.append)
        assert done[0] == 5  # a pass still takes a batch, whatever room there is

    @pytest.mark.parametrize("slots", [2, 64])
    def test_one_plan_and_then_many(
        self, llama: Model, slots: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The larger cache is a new one: kept states must fill its lower layers too."""
        monkeypatch.setattr(llama, "batch_size", slots)
        late = {name: edit for name, edit in edits_of(llama, 2.0)[0].items() if ".2." in name}
        plans = [late, {}, *edits_of(llama, 1.5)]
        engine = engine_of(llama, kept_share=math.inf)
        assert engine.replies("bad", [late]) == [plain_replies(llama, late)]
        assert engine.replies("bad", plans) == [plain_replies(llama, plan) for plan in plans]

    def test_what_a_plan_left_behind_harms_no_other(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A plan may overflow; NaN in masked columns of a slot would spread from there."""
        monkeypatch.setattr(llama, "batch_size", 5)
        monkeypatch.setattr("heretic.engine.prefill.TOKENS_ON_CPU", 60)
        plans = edits_of(llama, 1.5, 0.8)
        engine = engine_of(llama)
        expected = engine.replies("bad", plans)
        assert engine._decoder is not None
        with torch.inference_mode():
            for _, keys, values in _views(engine._decoder.cache):
                keys.fill_(math.nan)
                values.fill_(math.nan)
        assert engine.replies("bad", plans) == expected

    def test_a_longer_row_does_not_let_older_ones_read_what_lay_before_them(
        self, llama: Model
    ) -> None:
        prompts = ["a", "b" * 90]
        engine = Engine(llama, {"bad": prompts}, replied={"bad"}, max_new_tokens=2)
        engine.replies("bad", [{}])
        decoder = engine._decoder
        assert decoder is not None
        with torch.inference_mode():
            for _, *both in _views(decoder.cache):
                for states in both:
                    states.fill_(math.nan)
            wanted = Request([[None, None]], lambda text: False, lambda *_: True, lambda *_: None)
            batch = Batch(llama, decoder, RowEdits(llama.writers, [{}]), wanted, 2)
            made = []
            for index in range(2):
                first = batch.admit(engine._prefill, "bad", [(0, index)])
                made += first.argmax(dim=-1).tolist()
            found = batch.logits_after(made)
        rows = [[*row, token] for row, token in zip(llama.encode_rows(prompts), made, strict=True)]
        torch.testing.assert_close(found, llama.logits_after(rows), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("every", [3, 50])
    def test_looking_seldom_changes_nothing(
        self, llama: Model, every: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plans = edits_of(llama, 1.5, 0.8)

        def decided(text: str) -> bool:
            return "a" in text or len(text) > 4

        often = engine_of(llama).replies("bad", plans, decided=decided)
        monkeypatch.setitem(SCHEDULES, "cpu", Schedule(every))
        assert engine_of(llama).replies("bad", plans, decided=decided) == often

    @pytest.mark.parametrize("every", [1, 4])
    def test_replies_end_at_an_end_token(
        self, llama: Model, every: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(SCHEDULES, "cpu", Schedule(every))
        plan = edits_of(llama, 1.2)[0]
        full = plain_replies(llama, plan)
        common = max("".join(full), key="".join(full).count)
        (token,) = llama.tokenizer(common, add_special_tokens=False)["input_ids"][:1]
        monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [token])
        (replies,) = engine_of(llama).replies("bad", [plan])
        assert replies == plain_replies(llama, plan)
        assert sum(len(str(reply)) for reply in replies) < len("".join(full))

    def test_half_precision_and_eager_attention(self, tmp_path: Path) -> None:
        model = load(tiny.folder(tmp_path), dtypes=["bfloat16"])
        assert isinstance(
            open_engine(model, {"bad": BAD}, replied={"bad"}, max_new_tokens=4), Engine
        )
        model = load(tmp_path)
        model.model.set_attn_implementation("eager")
        plans = edits_of(model, 1.5, 0.8)
        assert engine_of(model).replies("bad", plans) == [plain_replies(model, p) for p in plans]


class TestLessWork:
    def test_logits_are_held_once(self, llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(llama, "batch_size", 3)
        engine = engine_of(llama)
        step, made, left = Model.step, list[StorageWeakRef](), list[int]()

        def watched(self: Model, *args: Any) -> Tensor:
            logits = step(self, *args)
            made.append(StorageWeakRef(logits.untyped_storage()))
            return logits

        monkeypatch.setattr(Model, "step", watched)
        first_logits(
            engine, "good", {}, on_step=lambda done: left.append(sum(not x.expired() for x in made))
        )
        assert max(left) <= 2 < len(left)  # the batch at hand, and the head's

    def test_layers_below_the_first_edited_one_do_not_run(self, llama: Model) -> None:
        engine = engine_of(llama)
        first_logits(engine, "good", {})  # records the original
        last = llama.n_layers - 1
        plan = {name: edit for name, edit in edits_of(llama, 1.5)[0].items() if f".{last}." in name}
        expected = first_logits(
            engine_of(llama, techniques=Techniques(reuse_originals=False)), "good", plan
        )
        ran = [_ran(layer) for layer in llama.get_layers()]
        found = first_logits(engine, "good", plan)
        assert [bool(count()) for count in ran] == [False] * last + [True]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    def test_the_common_head_is_one_row(self, llama: Model) -> None:
        plan = edits_of(llama, 1.5)[0]
        tokens = {}
        for share in (True, False):
            engine = engine_of(
                llama, techniques=Techniques(share_head=share, reuse_originals=False)
            )
            count = _ran(llama.get_layers()[0])
            first_logits(engine, "good", plan)
            tokens[share] = count()
        head = EncodedPrompts.split(llama.encode_rows(GOOD)).head
        assert tokens[False] - tokens[True] == len(head) * (len(GOOD) - 1)

    def test_decided_rows_leave(self, llama: Model) -> None:
        plan = edits_of(llama, 1.5)[0]
        made = []

        def count(tokens: int, done: int, total: int) -> None:
            made.append(tokens)

        (replies,) = engine_of(llama).replies(
            "bad", [plan], decided=lambda text: len(text) >= 2, on_step=count
        )
        full = plain_replies(llama, plan)
        assert all(whole.startswith(str(cut)) for cut, whole in zip(replies, full, strict=True))
        assert sum(made) <= 3 * len(BAD) < LENGTH * len(BAD)

    def test_verdicts_of_many_replies_are_those_of_full_length(self, llama: Model) -> None:
        markers = ["`", "%", "x"]
        plans = edits_of(llama, *(0.2 * step for step in range(10)))

        def decided(text: str) -> bool:
            return has_marker(text, markers)

        cut = engine_of(llama, 20).replies("bad", plans, decided=decided)
        full = engine_of(llama, 20).replies("bad", plans)
        pairs = [
            (str(short), str(whole))
            for shorts, wholes in zip(cut, full, strict=True)
            for short, whole in zip(shorts, wholes, strict=True)
        ]
        assert len(pairs) == 10 * len(BAD)
        verdicts = [(is_refusal(a, markers), is_refusal(b, markers)) for a, b in pairs]
        assert all(short == whole for short, whole in verdicts)
        assert {short for short, _ in verdicts} == {True, False}
        assert any(len(short) < len(whole) for short, whole in pairs)

    def test_nothing_is_made_for_a_plan_that_was_dropped(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(llama, "batch_size", 5)
        seen: list[int] = []

        def finished(plan: int, prompt: int, text: str) -> bool:
            seen.append(plan)
            return plan != 0

        first, second = engine_of(llama).replies(
            "bad", edits_of(llama, 1.5, 0.8), finished=finished
        )
        # Only rows that ended in the same step as the first one are reported.
        assert 1 <= seen.count(0) <= 5
        assert seen.count(1) == len(BAD)
        assert None in first
        assert second == plain_replies(llama, edits_of(llama, 1.5, 0.8)[1])

    def test_progress_counts_to_the_total(self, llama: Model) -> None:
        steps: list[tuple[int, int]] = []
        engine_of(llama).replies(
            "bad",
            edits_of(llama, 1.5, 0.8),
            on_step=lambda tokens, done, total: steps.append((done, total)),
        )
        assert steps[-1] == (2 * len(BAD), 2 * len(BAD))
        assert steps == sorted(steps)


def _views(cache: SlotCache) -> States:
    return [
        (index, *layer.read(0, cache.slots, 0, cache.columns))
        for index, layer in cache._layers.items()
    ]


def _ran(layer: torch.nn.Module) -> Callable[[], int]:
    """Watch a layer; the result counts the tokens it has seen, and ends the watch."""
    counts: list[int] = []

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        counts.append(hidden.shape[0] * hidden.shape[1])

    handle = layer.mlp.register_forward_hook(note)  # type: ignore[union-attr]

    def total() -> int:
        handle.remove()
        return sum(counts)

    return total


def fail_once(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let one forward pass run out of memory."""
    step, steps = Model.step, 0

    def once(self: Model, *args: Any) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == at:
            raise torch.OutOfMemoryError("out of memory")
        return step(self, *args)

    monkeypatch.setattr(Model, "step", once)


class TestFaults:
    @pytest.fixture
    def short_of_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No pass of more than 3 rows fits."""
        step = Model.step

        def guarded(self: Model, tokens: Tensor, *rest: Any) -> Tensor:
            if len(tokens) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return step(self, tokens, *rest)

        monkeypatch.setattr(Model, "step", guarded)

    @pytest.mark.usefixtures("short_of_memory")
    def test_running_out_of_memory_halves_the_batch_and_goes_on(self, tmp_path: Path) -> None:
        reporter = Collector()
        model = load(tiny.folder(tmp_path), reporter, batch_size=12)
        plans = edits_of(model, 1.5, 0.8)
        told: list[tuple[int, int]] = []

        def finished(plan: int, prompt: int, text: str) -> bool:
            told.append((plan, prompt))
            return True

        engine = engine_of(model)
        replies = engine.replies("bad", plans, finished=finished)
        assert replies == [plain_replies(model, plan) for plan in plans]
        assert model.batch_size == 3
        assert len(told) == len(set(told)) == 2 * len(BAD)
        assert [text for text in reporter.warnings if "batch size is now 3" in text]
        with edited(model, plans[0]):
            expected = model.get_logits(GOOD)
        torch.testing.assert_close(
            first_logits(engine, "good", plans[0]), expected, rtol=1e-4, atol=1e-4
        )

    @pytest.mark.usefixtures("short_of_memory")
    def test_plans_share_fewer_rows_where_memory_ends(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reporter = Collector()
        model = load(tiny.folder(tmp_path), reporter, batch_size=3)
        monkeypatch.setattr(model, "_most_rows", 6)
        plans = edits_of(model, 1.5, 0.8)
        replies = engine_of(model).replies("bad", plans)
        assert replies == [plain_replies(model, plan) for plan in plans]
        assert (model.batch_size, model.rows_together(2)) == (3, 3)
        assert [text for text in reporter.warnings if "at most 3 rows together" in text]

    def test_room_for_many_plans_is_given_up_before_the_batch(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plans = edits_of(llama, 1.5, 0.8, 2.0)
        expected = first_logits(engine_of(llama), "good", plans[0])
        monkeypatch.setattr(llama, "batch_size", 5)
        monkeypatch.setattr(llama, "_most_rows", 15)
        engine = engine_of(llama)
        engine.replies("bad", plans)
        fail_once(monkeypatch, at=2)
        found = first_logits(engine, "good", plans[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (llama.batch_size, llama.rows_together(3)) == (5, 5)

    def test_an_earlier_process_that_ran_out_of_memory_is_heeded(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for recorded, together in ((6, 18), (3, 3)):
            monkeypatch.setattr(llama, "batch_size", 6)
            monkeypatch.setattr(llama, "_most_rows", 40)
            llama.take_up(recorded)
            assert (llama.batch_size, llama.rows_together(3)) == (recorded, together)

    def test_running_out_of_memory_amid_logits(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (plan,) = edits_of(llama, 1.5)
        expected = first_logits(engine_of(llama), "good", plan)
        monkeypatch.setattr(llama, "batch_size", 5)
        engine = engine_of(llama)
        fail_once(monkeypatch, at=3)  # the head, a batch, another
        done: list[int] = []
        found = first_logits(engine, "good", plan, on_step=done.append)
        assert done == [5, 2, 4, 6, 8, 10, 12]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_running_out_of_memory_later_on(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        late = {name: edit for name, edit in edits_of(llama, 2.0)[0].items() if ".2." in name}
        monkeypatch.setattr(llama, "batch_size", 64)
        engine = engine_of(llama, kept_share=math.inf)
        engine.replies("bad", [late])
        fail_once(monkeypatch, at=4)
        assert engine.replies("bad", [late]) == [plain_replies(llama, late)]
        assert llama.batch_size == len(BAD) // 2  # half of the slots there were
        assert not any("forward" in layer.__dict__ for layer in llama.get_layers())
        assert not any(writer.module._forward_hooks for writer in llama.writers)

    def test_another_response_prefix_needs_another_engine(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = engine_of(llama)
        first_logits(engine, "good", {})
        monkeypatch.setattr(llama, "response_prefix", "Well, ")
        with pytest.raises(ValueError, match="make a new engine"):
            first_logits(engine, "good", {})
        with pytest.raises(ValueError, match="make a new engine"):
            engine.replies("bad", [{}])

    def test_other_errors_are_raised(self, llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*args: Any) -> Tensor:
            raise RuntimeError("shapes do not fit")

        monkeypatch.setattr(Model, "step", broken)
        with pytest.raises(RuntimeError, match="shapes do not fit"):
            first_logits(engine_of(llama), "good", {})

    @pytest.mark.parametrize("family", ["bloom", "mpt"])
    def test_a_family_that_cannot_is_evaluated_plainly_and_said_so(
        self, family: str, tmp_path: Path
    ) -> None:
        reporter = Collector()
        model = load(tiny.folder(tmp_path, family), reporter, batch_size=5)
        engine = open_engine(
            model, {"good": GOOD, "bad": BAD}, replied={"bad"}, max_new_tokens=LENGTH
        )
        assert isinstance(engine, PlainEngine)
        assert [text for text in reporter.warnings if "one by one" in text]
        plans = edits_of(model, 1.5, 0.8)
        assert engine.replies("bad", plans) == [plain_replies(model, plan) for plan in plans]
        with edited(model, plans[0]):
            expected = model.get_logits_batched(GOOD)
        assert torch.equal(first_logits(engine, "good", plans[0]), expected)

    def test_an_interruption_that_a_library_disguised_is_no_reason(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*args: Any) -> Tensor:
            raise RuntimeError("a callback failed: KeyboardInterrupt: ")

        monkeypatch.setattr(Model, "step", interrupted)
        with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
            open_engine(llama, {"bad": BAD}, replied={"bad"}, max_new_tokens=LENGTH)

    @pytest.mark.parametrize("name", ["cache", "past_key_values"])
    def test_the_cache_may_have_its_old_name_or_its_new_one(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = load(tiny.folder(tmp_path))
        expected = plain_replies(model, {})
        with_cache_called(name, model, monkeypatch)
        assert plain_replies(model, {}) == expected
        engine = open_engine(model, {"bad": BAD}, replied={"bad"}, max_new_tokens=LENGTH)
        assert isinstance(engine, Engine)
        assert engine.replies("bad", [{}]) == [expected]

    def test_a_cache_of_another_name_is_not_found_and_the_notice_says_what_was_seen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reporter = Collector()
        model = load(tiny.folder(tmp_path), reporter)
        expected = plain_replies(model, {})
        with_cache_called("memory", model, monkeypatch)
        engine = open_engine(model, {"bad": BAD}, replied={"bad"}, max_new_tokens=LENGTH)
        assert isinstance(engine, PlainEngine)
        [warning] = [text for text in reporter.warnings if "one by one" in text]
        assert "cache or past_key_values" in warning
        assert "input_ids, attention_mask, position_ids, memory" in warning
        assert transformers.__version__ in warning
        assert engine.replies("bad", [{}]) == [expected]

    def test_the_plain_way_drops_plans_too(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = PlainEngine(llama, {"bad": BAD}, max_new_tokens=2)
        monkeypatch.setattr(llama, "batch_size", 5)
        first, second = engine.replies(
            "bad", edits_of(llama, 1.5, 0.8), finished=lambda plan, prompt, text: plan == 1
        )
        assert first.count(None) == len(BAD) - 5
        assert None not in second

    def test_replies_beyond_all_positions_are_made_plainly(self, tmp_path: Path) -> None:
        length = max(map(len, load(tiny.folder(tmp_path)).encode_rows(BAD)))
        for size, kind in ((length + LENGTH, Engine), (length + LENGTH - 1, PlainEngine)):
            reporter = Collector()
            path = tiny.folder(tmp_path / str(size), max_position_embeddings=size)
            model = load(path, reporter)
            engine = open_engine(model, {"bad": BAD}, replied={"bad"}, max_new_tokens=LENGTH)
            assert isinstance(engine, kind)
            told = [text for text in reporter.warnings if f"window of {size} tokens" in text]
            assert bool(told) == (kind is PlainEngine)

    def test_a_forward_that_goes_wrong_is_noticed(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = Model.step

        def one_off(self: Model, tokens: Tensor, positions: Tensor, *rest: Any) -> Tensor:
            return step(self, tokens, positions + torch.arange(positions.shape[1]), *rest)

        monkeypatch.setattr(Model, "step", one_off)
        engine = open_engine(llama, {"bad": BAD}, replied={"bad"}, max_new_tokens=LENGTH)
        assert isinstance(engine, PlainEngine)


class TestParts:
    def test_rows_and_columns_move_with_their_mask(self) -> None:
        cache = SlotCache(Layout((Kept(),) * 2), 4, 6, torch.device("cpu"))
        keys = torch.arange(4.0)[:, None, None, None].expand(4, 1, 3, 2)
        cache.write([(1, keys, -keys)], first=0, end=3)
        cache.mask[:, :3] = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 1], [0, 1, 0]]).bool()
        cache.move_rows([3], [0], begin=1, end=3)
        ((_, moved, _),) = cache.read(0, 1, 0, 3)
        assert moved[0, 0, :, 0].tolist() == [0, 3, 3]  # columns that no row reads do not change
        cache.move_columns(rows=2, begin=1, end=3, to=6)
        ((index, found, values),) = cache.read(0, 2, 4, 6)
        assert index == 1
        assert found[:, 0, :, 0].tolist() == [[3, 3], [1, 1]]
        assert torch.equal(values, -found)
        assert cache.mask[:2].int().tolist() == [[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1]]

    @pytest.mark.parametrize(
        ("rows", "head"),
        [
            ([[1, 2, 3], [1, 2, 4]], [1, 2]),
            ([[1, 2], [1, 2, 4]], [1]),  # every prompt keeps a token of its own
            ([[1, 2], [1, 2]], [1]),
            ([[1], [2, 3]], []),
        ],
    )
    def test_the_head_is_what_all_begin_with(self, rows: list[list[int]], head: list[int]) -> None:
        found = EncodedPrompts.split(rows)
        assert list(found.head) == head
        assert [[*found.head, *tail] for tail in found.tails] == rows
        assert found.length == max(map(len, rows))

    def test_checkpoints_fit_the_budget(self) -> None:
        assert checkpoint_layers(12, budget=0, inputs=1, states=1) == []
        for budget in range(60):
            chosen = checkpoint_layers(12, budget, inputs=2, states=1)
            assert 2 * len(chosen) + max(chosen, default=0) <= budget
            assert all(0 < layer < 12 for layer in chosen)
