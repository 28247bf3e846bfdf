"""The decoding step is the same work on the same memory: proofs that need no GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.test_engine import (
    BAD,
    GOOD,
    LENGTH,
    Collector,
    edited,
    edits_of,
    engine_of,
    load,
    mixed_edits_of,
    plain_replies,
)
from tests.model.test_model import GPT2_SIZES
from tests.support import tiny
from tests.support.zoo import tiny_folder
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from heretic.engine import engine as engines
from heretic.engine.batch import Batch, Request
from heretic.engine.engine import Engine
from heretic.engine.graphs import Graphs, Step
from heretic.engine.shapes import SCHEDULES, Schedule, Shape
from heretic.engine.step import Rows, next_logits, step
from heretic.method.edits import OutputEdit
from heretic.model import AbliterationParameters, Model
from heretic.model.edit_table import EditTable
from heretic.model.editing import RowEdits
from heretic.records import Plan

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "olmo2": {},  # norms after the writers
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 400},
    "mistral": {"sliding_window": 400},
    "mixtral": {"num_local_experts": 4, **EXPERTS},
    "qwen3_moe": {"num_experts": 4, "head_dim": 8, **EXPERTS},
}
"""Of each kind at least one: norms before and after writers, windows, experts."""

OTHER_LAYERS = ("falcon_h1", "gemma3_text", "lfm2", "qwen3_next")
"""With states that tokens carry on, and with windows that rows exceed (`tests.support.zoo`)."""

EXPERTS_BY = {"mixtral": "grouped_mm", "qwen3_moe": "batched_mm"}
"""How transformers is told to run the experts of a family."""

BLOCKS = [
    Schedule(steps=1, rows=8, columns=64),
    Schedule(steps=3, rows=2, columns=16),
    Schedule(steps=4, rows=1, columns=1, overlaps=True),
    Schedule(steps=5, rows=4, columns=32, overlaps=True),
    Schedule(steps=50, rows=64, columns=512, overlaps=True),
    Schedule(steps=1, mixes=True),
    Schedule(steps=3, rows=2, columns=16, overlaps=True, mixes=True),
]


class Replayed:
    """Stands in for CUDA graphs: the kernels of the first step, on the tensors that it had.

    Attributes:
        recorded: Number of recordings made.
    """

    def __init__(self) -> None:
        self.recorded = 0

    def warm(self, step: Step) -> None:
        """Recording runs the step already."""

    def record(self, step: Step) -> Step:
        """Run a step and record its kernels; nothing of Python remains."""
        self.recorded += 1
        return make_fx(step)()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(tiny.folder(tmp_path_factory.mktemp("llama")))


def called(schedule: Schedule) -> str:
    kind = "overlapping" if schedule.overlaps else "waiting"
    kind += "-mixing" if schedule.mixes else ""
    return f"{schedule.steps}-{schedule.rows}-{schedule.columns}-{kind}"


some_blocks = pytest.mark.parametrize("blocks", [BLOCKS[1], BLOCKS[3]], indirect=True, ids=called)


@pytest.fixture(params=BLOCKS, ids=called)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Schedule:
    """A schedule, which new engines follow."""
    schedule: Schedule = request.param
    monkeypatch.setitem(SCHEDULES, "cpu", schedule)
    return schedule


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Replayed:
    """New engines record their steps with this one."""
    replayed = Replayed()
    monkeypatch.setattr(engines, "recorder_for", lambda model: replayed)
    return replayed


@contextmanager
def counted_passes(model: Model) -> Iterator[list[None]]:
    """The list grows by one with every forward pass."""
    passes: list[None] = []
    handle = model.model.register_forward_pre_hook(lambda *_: passes.append(None))
    try:
        yield passes
    finally:
        handle.remove()


def tiny_family(name: str, path: Path, **options: Any) -> Model:
    if name in OTHER_LAYERS:
        return load(tiny_folder(path, name), **options)
    sizes = {"num_hidden_layers": 2, **FAMILIES[name]}
    model = load(tiny.folder(path, name, **sizes), **options)
    if name in EXPERTS_BY:
        model.model.set_experts_implementation(EXPERTS_BY[name])
    return model


def summed_edits_of(model: Model) -> list[dict[str, OutputEdit]]:
    """Two plans that edit the sum of experts."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(model.n_layers + 1, model.hidden_size, generator=generator)
    directions = functional.normalize(rows, dim=-1)
    plans = (
        Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={
                name: AbliterationParameters(weight, 2.0, weight / 2, 2.0)
                for name in ("attn", "mlp")
            },
            row_normalization="none",
        )
        for weight in (1.5, 0.8)
    )
    return [model.plan_edits(plan, directions) for plan in plans]


class Started:
    """A batch of three rows of two plans, ready to step."""

    def __init__(
        self,
        model: Model,
        schedule: Schedule,
        monkeypatch: pytest.MonkeyPatch,
        plans: Sequence[dict[str, OutputEdit]] = (),
    ) -> None:
        monkeypatch.setitem(SCHEDULES, "cpu", schedule)
        has_experts = any(writer.expert is not None for writer in model.writers)
        own = summed_edits_of(model) if has_experts else edits_of(model, 1.5, 0.8)
        self.plans = plans or own
        self.engine = engine_of(model)
        self.decoder = self.engine._allocated(5)
        self.engine._prefill.prepare("bad", self.decoder.cache)
        self.edits = RowEdits(model.writers, self.plans)
        wanted = Request(
            [[None] * len(BAD) for _ in self.plans],
            lambda text: False,
            lambda *_: True,
            lambda *_: None,
        )
        self.batch = Batch(model, self.decoder, self.edits, wanted, LENGTH)
        with self.edits.installed():
            self.batch.admit(self.engine._prefill, "bad", [(0, 0), (0, 1)])
            self.batch.admit(self.engine._prefill, "bad", [(1, 3)])
        self.shape = self.batch._shape(schedule.steps)
        self.decoder._edit(self.shape, self.edits, [0, 0, 1])
        self.arguments = model, self.decoder.cache, self.decoder.rows, self.shape


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.usefixtures("inference")
class TestTrace:
    @pytest.mark.parametrize("name", [*sorted(FAMILIES), *OTHER_LAYERS])
    def test_a_step_is_one_graph_that_serves_all_steps_of_its_shape(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`fullgraph` raises on a read of data; a number that changed would compile anew."""
        model = tiny_family(name, tmp_path)
        schedule = Schedule(steps=4, rows=8, columns=32)
        counter = CompileCounter()
        torch.compiler.reset()
        compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=False)
        found = []
        for once in (step, compiled):
            started = Started(model, schedule, monkeypatch)
            with started.edits.installed():
                for _ in range(schedule.steps):
                    once(*started.arguments)
            rows = started.decoder.rows
            found.append((rows.made[:3], rows.positions[:3], rows.left[:3], rows.column))
        assert counter.frame_count == 1
        assert all(map(torch.equal, *found))
        assert int(found[0][2].max()) == LENGTH - 1 - schedule.steps

    @pytest.mark.parametrize("name", [*sorted(FAMILIES), *OTHER_LAYERS])
    def test_a_step_needs_no_data(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Only in bfloat16 does torch know the shape of a grouped product without data.
        model = tiny_family(name, tmp_path, dtypes=["bfloat16"])
        started = Started(model, Schedule(steps=4, rows=8, columns=32), monkeypatch)
        rows = started.decoder.rows
        before = rows.tokens.clone(), rows.positions.clone()
        with started.edits.installed(), FakeTensorMode(allow_non_fake_inputs=True):
            step(*started.arguments)
            with pytest.raises(DataDependentOutputException):
                bool((rows.tokens == 0).all())  # what a read of data would do
        assert torch.equal(rows.tokens, before[0])
        assert torch.equal(rows.positions, before[1])

    def test_experts_that_are_edited_one_by_one_cannot_be_captured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """How many tokens an expert gets is data: such plans keep the plain step."""
        model = tiny_family("mixtral", tmp_path)
        started = Started(model, Schedule(steps=1), monkeypatch, edits_of(model, 1.5, 0.8))
        with (
            started.edits.installed(),
            FakeTensorMode(allow_non_fake_inputs=True),
            pytest.raises(RuntimeError),
        ):
            step(*started.arguments)


class TestBlocks:
    """Whatever the blocks and shapes are, each row gives the same reply as alone."""

    @pytest.mark.parametrize("slots", [5, 40])
    @pytest.mark.usefixtures("blocks")
    def test_replies_are_those_of_plain_decoding(
        self, llama: Model, slots: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(llama, "batch_size", slots)
        # Few prompts per pass: rows of all ages are in the batch together, and it has to move.
        monkeypatch.setattr("heretic.engine.prefill.TOKENS_ON_CPU", 60)
        monkeypatch.setattr("heretic.engine.shapes.SPARE_COLUMNS", 0)
        plans = mixed_edits_of(llama)
        engine = engine_of(llama, kept_share=math.inf)
        assert engine.replies("bad", plans) == [plain_replies(llama, plan) for plan in plans]

    @pytest.mark.parametrize("slots", [3, 7, 40])
    @pytest.mark.parametrize("start", ["one", "several"])
    def test_plans_share_forward_passes(
        self, llama: Model, slots: int, start: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fewer passes, and each plan gives the logits and the replies that it gives alone."""
        monkeypatch.setattr(llama, "batch_size", slots)
        monkeypatch.setattr(llama, "_most_rows", slots)
        plans, passes = mixed_edits_of(llama), dict[bool, int]()
        if start == "one":
            plans = [plan for plan in plans if any(".0." in name for name in plan)]
        replies, logits = [], []
        for mixes in (False, True):
            monkeypatch.setitem(SCHEDULES, "cpu", Schedule(steps=1, mixes=mixes))
            engine = engine_of(llama, kept_share=math.inf)
            engine.first_tokens("good", [{}], lambda *_: None)  # records the original
            found: dict[tuple[int, int], Tensor] = {}

            def take(
                pairs: Sequence[tuple[int, int]],
                rows: Tensor,
                found: dict[tuple[int, int], Tensor] = found,
            ) -> None:
                assert len(pairs) <= slots
                found.update(zip(pairs, rows.clone(), strict=True))

            with counted_passes(llama) as counted:
                engine.first_tokens("good", plans, take)
            passes[mixes] = len(counted)
            logits.append(torch.stack([found[pair] for pair in sorted(found)]))
            replies.append(engine.replies("bad", plans))
        assert len(logits[0]) == len(plans) * len(GOOD)
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
        assert replies[1] == replies[0] == [plain_replies(llama, plan) for plan in plans]
        assert passes[True] < passes[False]

    def test_a_pass_of_all_plans_holds_prompts_of_similar_length(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(llama, "batch_size", 4)
        monkeypatch.setattr(llama, "_most_rows", 8)
        monkeypatch.setitem(SCHEDULES, "cpu", Schedule(steps=1, mixes=True))
        engine = engine_of(llama)
        widths: list[list[int]] = []
        tails = engine._prefill.sets["good"].tails
        engine.first_tokens(
            "good",
            edits_of(llama, 1.5, 0.8)[:1] * 2,
            lambda pairs, rows: widths.append([len(tails[prompt]) for _, prompt in pairs]),
        )
        flat = [width for row in widths for width in row]
        assert flat == sorted(flat, reverse=True)
        assert len(flat) == 2 * len(GOOD)
        assert [len(row) for row in widths] == [8, 8, 8]

    @pytest.mark.parametrize("name", ["gemma3_text", "qwen3_next", "mixtral", "olmo2"])
    def test_other_families_share_passes_too(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Windows, carried states, experts edited one by one, and norms after writers."""
        monkeypatch.setitem(SCHEDULES, "cpu", Schedule(steps=1, mixes=True))
        model = tiny_family(name, tmp_path)
        plans = edits_of(model, 1.5, 0.8, 2.0)
        engine = engine_of(model)
        assert engine.replies("bad", plans) == [plain_replies(model, plan) for plan in plans]

    @pytest.mark.usefixtures("blocks")
    def test_verdicts_dropped_plans_and_progress_are_the_same(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(llama, "batch_size", 7)
        plans = mixed_edits_of(llama)

        def decided(text: str) -> bool:
            return "a" in text or len(text) > 4

        told: list[tuple[int, int]] = []
        done: list[int] = []

        def finished(plan: int, prompt: int, text: str) -> bool:
            told.append((plan, prompt))
            return plan != 2

        found = engine_of(llama).replies(
            "bad",
            plans,
            decided=decided,
            finished=finished,
            on_step=lambda tokens, made, total: done.append(made),
        )
        for plan, (texts, edits) in enumerate(zip(found, plans, strict=True)):
            whole = plain_replies(llama, edits)
            for text, full in zip(texts, whole, strict=True):
                if text is not None:
                    cut = (full[: n + 1] for n in range(len(full)) if decided(full[: n + 1]))
                    assert text == next(cut, full)
            assert plan == 2 or None not in texts
        assert None in found[2]
        assert len(told) == len(set(told))
        assert done == sorted(done)
        assert done[-1] == len(plans) * len(BAD)

    @pytest.mark.usefixtures("blocks")
    def test_replies_end_at_end_tokens_and_within_the_table_of_positions(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A row that goes on after its end must not count on: there are no more positions."""
        longest = max(map(len, load(tiny.folder(tmp_path / "a")).encode_rows(BAD)))
        sizes: dict[str, Any] = GPT2_SIZES | {"n_positions": longest + LENGTH}
        model = load(tiny.folder(tmp_path / "b", "gpt2", **sizes), batch_size=5)
        plans = edits_of(model, 1.5, 0.8)
        full = "".join(text for plan in plans for text in plain_replies(model, plan))
        common = max(full, key=full.count)
        (token,) = model.tokenizer(common, add_special_tokens=False)["input_ids"][:1]
        monkeypatch.setattr(model.model.generation_config, "eos_token_id", [token])
        expected = [plain_replies(model, plan) for plan in plans]
        assert engine_of(model).replies("bad", plans) == expected
        assert sum(len(text) for texts in expected for text in texts) < len(full)

    @pytest.mark.usefixtures("blocks")
    def test_what_lay_in_the_cache_harms_no_row(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(llama, "batch_size", 5)
        monkeypatch.setattr("heretic.engine.prefill.TOKENS_ON_CPU", 60)
        plans = edits_of(llama, 1.5, 0.8)
        engine = engine_of(llama)
        expected = engine.replies("bad", plans)
        _fill_with_nan(engine)
        seen: list[bool] = []

        def watched(*arguments: Any) -> Tensor:
            logits = next_logits(*arguments)
            seen.append(bool(logits.isfinite().all()))
            return logits

        monkeypatch.setattr("heretic.engine.step.next_logits", watched)
        assert engine.replies("bad", plans) == expected
        assert all(seen)  # spare rows too
        assert len(seen) > 1

    @pytest.mark.usefixtures("inference")
    def test_spare_rows_stay_finite_and_change_no_other(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logits = []
        for schedule in (Schedule(steps=1), Schedule(steps=4, rows=4, columns=64)):
            started = Started(llama, schedule, monkeypatch)
            model, cache, rows, shape = started.arguments
            for layer in cache._layers.values():
                for states in layer.read(3, 5, 0, cache.columns):
                    states.fill_(math.nan)
            batch = started.batch
            batch._settled, batch._ahead, batch._spare = None, (0, 0), (0, 0, 0)
            batch._shape(schedule.steps)
            with started.edits.installed():
                logits.append(next_logits(model, cache, rows, shape))
        exact, spare = logits
        assert (len(exact), len(spare)) == (3, 4)  # a spare row among them
        assert spare.isfinite().all()
        torch.testing.assert_close(spare[:3], exact, rtol=1e-5, atol=1e-5)

    @some_blocks
    @pytest.mark.usefixtures("blocks", "inference")
    def test_half_precision_keeps_divergences_within_what_saved_models_are_held_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """KL(original || edited) of second tokens, within 0.01 or 5% of the plain forward's."""
        model = load(tiny.folder(tmp_path, initializer_range=0.1), dtypes=["bfloat16"])
        plans = edits_of(model, 1.5, 2.0)
        engine = engine_of(model)
        decoder = engine._allocated(5)
        engine._prefill.prepare("bad", decoder.cache)
        edits = RowEdits(model.writers, plans)
        wanted = Request([[None] * len(BAD)] * 2, lambda text: False, lambda *_: True, print)
        batch = Batch(model, decoder, edits, wanted, LENGTH)
        with edits.installed():
            for number in (0, 1):
                batch.admit(engine._prefill, "bad", [(number, 0), (number, 1)])
            found = batch.logits_after([5, 6, 5, 6])
        rows = [[*row, 5 + i] for i, row in enumerate(model.encode_rows(BAD[:2]))]
        original = model.logits_after(rows)
        for plan, own in zip(plans, found.split(2), strict=True):
            with edited(model, plan):
                expected = _divergences(original, model.logits_after(rows))
            assert float(expected.min()) > 0.01
            apart = (_divergences(original, own.float()) - expected).abs()
            assert (apart <= (0.05 * expected).clamp_min(0.01)).all()


def _divergences(original: Tensor, other: Tensor) -> Tensor:
    left, right = (x.double().log_softmax(dim=-1) for x in (original, other))
    return (left.exp() * (left - right)).sum(dim=-1)


def _fill_with_nan(engine: Engine) -> None:
    assert engine._decoder is not None
    cache = engine._decoder.cache
    with torch.inference_mode():
        for layer in cache._layers.values():
            for states in layer.read(0, cache.slots, 0, cache.columns):
                states.fill_(math.nan)


class TestGraphs:
    @some_blocks
    @pytest.mark.usefixtures("blocks")
    def test_recorded_steps_make_the_same_replies(
        self, llama: Model, recorder: Replayed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Over several calls, whose plans differ in number, rank, and in what they edit."""
        monkeypatch.setattr(llama, "batch_size", 5)
        plans = mixed_edits_of(llama)
        expected = [plain_replies(llama, plan) for plan in plans]
        engine = engine_of(llama)
        assert engine.replies("bad", plans) == expected
        made = recorder.recorded
        assert made
        assert engine.replies("bad", plans[3:5]) == expected[3:5]
        assert engine.replies("bad", plans[1:2]) == expected[1:2]
        assert engine.replies("bad", plans) == expected
        shapes = len(engine._graphs._kept)  # type: ignore[union-attr]
        assert made <= recorder.recorded == shapes

    def test_plans_that_need_more_room_are_recorded_anew(
        self, llama: Model, recorder: Replayed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(SCHEDULES, "cpu", Schedule(steps=4, rows=64, columns=512))
        plans = mixed_edits_of(llama)
        engine = engine_of(llama)
        assert engine.replies("bad", plans[:1]) == [plain_replies(llama, plans[0])]
        assert recorder.recorded == 1
        assert engine.replies("bad", plans[:1]) == [plain_replies(llama, plans[0])]
        assert recorder.recorded == 1
        assert engine.replies("bad", plans[1:2]) == [plain_replies(llama, plans[1])]
        assert recorder.recorded == 2

    @pytest.mark.parametrize("name", ["qwen3_moe", "olmo2"])
    def test_another_family_is_recorded_too(
        self, name: str, recorder: Replayed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(SCHEDULES, "cpu", Schedule(3, rows=8, columns=128, overlaps=True))
        model = tiny_family(name, tmp_path, batch_size=8)
        plans = summed_edits_of(model) if name in EXPERTS_BY else edits_of(model, 1.5, 0.8)
        found = engine_of(model).replies("bad", plans)
        assert found == [plain_replies(model, plan) for plan in plans]
        assert recorder.recorded

    def test_edits_that_the_model_has_in_force_are_not_missed(
        self, llama: Model, recorder: Replayed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(SCHEDULES, "cpu", Schedule(steps=4, rows=64, columns=512))
        directions = functional.normalize(torch.ones(llama.n_layers + 1, llama.hidden_size), dim=-1)
        kernel = AbliterationParameters(1.0, 2.0, 0.5, 2.0)
        plan = Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={"attn": kernel, "mlp": kernel},
            row_normalization="none",
        )
        expected = plain_replies(llama, {})
        assert engine_of(llama).replies("bad", [{}]) == [expected]
        before = recorder.recorded
        with llama.edited(plan, directions):
            changed = llama.get_responses_batched(BAD, max_new_tokens=LENGTH)
            assert engine_of(llama).replies("bad", [{}]) == [changed]
        assert changed != expected
        assert recorder.recorded == before

    def test_a_step_that_cannot_be_recorded_is_run_as_it_is_and_said_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Failing(Replayed):
            def warm(self, step: Step) -> None:
                step()

            def record(self, step: Step) -> Step:
                """Fail, and fail again at the end, as a capture does."""
                self.recorded += 1
                try:
                    raise RuntimeError("operation not permitted when stream is capturing\nsee")
                finally:
                    raise RuntimeError("a previous error during capture")

        failing, reporter = Failing(), Collector()
        monkeypatch.setattr(engines, "recorder_for", lambda model: failing)
        model = load(tiny.folder(tmp_path), reporter, batch_size=5)
        plans = edits_of(model, 1.5, 0.8)
        engine = engine_of(model)
        for _ in range(2):
            assert engine.replies("bad", plans) == [plain_replies(model, plan) for plan in plans]
        assert failing.recorded == 1
        [warning] = [text for text in reporter.warnings if "kernel by kernel" in text]
        assert warning.endswith(": operation not permitted when stream is capturing.")

    def test_memory_that_runs_out_is_for_the_engine_to_find(self) -> None:
        class Full(Replayed):
            def record(self, step: Step) -> Step:
                try:
                    raise torch.OutOfMemoryError("out of memory")
                finally:
                    raise RuntimeError("a previous error during capture")

        said: list[str] = []
        graphs = Graphs(Full(), said.append)
        with pytest.raises(torch.OutOfMemoryError):
            graphs.run(Shape(1, 0, 1), 0, lambda: None)
        assert not said


class TestTable:
    def test_each_row_gets_its_plans_edit(self, llama: Model) -> None:
        plans = mixed_edits_of(llama)
        table = EditTable()
        versions = []
        for chosen in (plans, plans[2:4], plans[:1], plans):
            edits = RowEdits(llama.writers, chosen, table)
            versions.append(edits.version)
            edits.use_index(torch.arange(len(chosen)))
            for writer in llama.writers:
                output = torch.randn(len(chosen), 2, llama.hidden_size)
                found = edits._edit_of(writer)
                assert found is not None
                wanted = [
                    rows if own is None else own.apply(rows)
                    for rows, own in zip(output, (p.get(writer.name) for p in chosen), strict=True)
                ]
                torch.testing.assert_close(found.apply(output), torch.stack(wanted))
        assert versions == [1, 1, 1, 1]

    def test_memory_stays_where_it_is_until_it_must_grow(self, llama: Model) -> None:
        plans, table = mixed_edits_of(llama), EditTable()
        places: list[set[int]] = []
        for chosen in (plans[3:4], plans[4:5], plans, plans[:2]):
            held = table.put(RowEdits(llama.writers, chosen)._stack({n for p in chosen for n in p}))
            places.append({edit.read.data_ptr() for edit in held.values()})
        assert places[0] != places[2] == places[3]

    def test_what_differs_in_moving_biases_gets_room_for_both(self) -> None:
        def edit(*moves: bool) -> OutputEdit:
            vectors = torch.ones(len(moves), 1, 4)
            kind = moves[0] if len(set(moves)) == 1 else torch.tensor(moves)
            return OutputEdit(vectors, vectors, None, torch.ones(len(moves), 4), kind)

        table = EditTable()
        assert table.put({"a": edit(True)})["a"].moves_bias is True
        moves = table.put({"a": edit(False, True)})["a"].moves_bias
        assert isinstance(moves, Tensor)
        assert moves.tolist() == [False, True]
        moves = table.put({"a": edit(True)})["a"].moves_bias
        assert isinstance(moves, Tensor)
        assert bool(moves[0])
        assert table.version == 2


class TestRows:
    def test_rows_end_at_end_tokens_and_at_their_length(self) -> None:
        rows = Rows(slots=4, columns=6, end={7, 9}, device=torch.device("cpu"))
        rows.column.fill_(1)
        rows.begin(0, torch.tensor([3, 9]), [10, 20], left=2, plans=[1, 1])
        rows.begin(2, torch.tensor([4]), [30], left=5, plans=[0])
        assert rows.left.tolist() == [2, 0, 5, 0]
        for chosen in ([5, 5, 5, 5], [6, 5, 7, 5], [8, 8, 8, 8]):
            rows.take(torch.tensor(chosen))
        assert rows.made[:, 1:4].tolist() == [[5, 6, 6], [9, 9, 9], [5, 7, 7], [0, 0, 0]]
        assert rows.left.tolist() == [0, 0, 0, 0]
        assert rows.positions.tolist() == [12, 20, 32, 0]
        assert rows.plans.tolist() == [1, 1, 0, 0]
        assert rows.column.tolist() == [4]

    @pytest.mark.parametrize(
        ("given", "rows", "columns"),
        [
            (Schedule(1), [1, 3, 9, 20], (13, 37)),
            (Schedule(1, rows=4, columns=16), [4, 4, 16, 20], (0, 48)),
            (Schedule(1, rows=8, columns=64), [8, 8, 16, 20], (0, 50)),
        ],
    )
    def test_shapes_hold_what_they_must(
        self, given: Schedule, rows: Sequence[int], columns: tuple[int, int]
    ) -> None:
        assert [given.rounded_rows(n, slots=20) for n in (1, 3, 9, 20)] == rows
        assert (given.down(13), given.up(37, 50)) == columns
