"""Loading, residuals, edits and generation on tiny models of several families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import tiny
from torch.nn import functional

from heretic.config import Settings
from heretic.errors import ModelError, SettingsError
from heretic.model import AbliterationParameters, Model
from heretic.model.loading import resolve_dtype
from heretic.model.prefix import close_reasoning, closing_of_template, common_prefix
from heretic.prompts import Prompt
from heretic.records import Plan, RowNormalization
from heretic.system import machine
from heretic.system.machine import usable_cores
from heretic.system.memory import halving

VARIANTS: tuple[RowNormalization, ...] = ("none", "pre", "full")
GPT2_SIZES = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {},
    "mistral": {},
    "phi3": {},
    "gemma": {"head_dim": 8},
    "gpt2": GPT2_SIZES,
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "granite": {"residual_multiplier": 0.3},
    "cohere": {},
}


def load(path: Path, **overrides: Any) -> Model:
    return Model(Settings(model=str(path), dtypes=["float32"], response_prefix="", **overrides))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(tiny.folder(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp(request.param)
    model = load(tiny.folder(path, request.param, **FAMILIES[request.param]))
    with torch.no_grad():  # fresh biases are zero, which would hide a mistake
        for writer in model.writers:
            bias = writer.bias()
            if bias is not None:
                bias.copy_(torch.linspace(-1, 1, bias.shape[0]))
    return model


def some_directions(model: Model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(model.n_layers + 1, model.hidden_size, generator=generator)
    rows[0] = 0
    return functional.normalize(rows, dim=-1)


def some_plan(variant: RowNormalization, scope: str = "per layer") -> Plan:
    return Plan.create(
        direction_scope=scope,  # type: ignore[arg-type]
        direction_index=1.3,
        kernels={
            "attn": AbliterationParameters(1.2, 1.5, 0.4, 2.0),
            "mlp": AbliterationParameters(0.9, 1.0, 0.2, 1.5),
        },
        row_normalization=variant,
    )


class TestEditing:
    """The contract of hooks and weights, for every family."""

    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_hooked_logits_are_edited_weights_logits(
        self, family_model: Model, variant: RowNormalization, dtype: torch.dtype
    ) -> None:
        model = family_model
        model.model.to(dtype)
        model._factory.forget()
        try:
            plan, directions = some_plan(variant), some_directions(model)
            before = model.get_logits(tiny.BAD_PROMPTS)
            with model.edited(plan, directions):
                hooked = model.get_logits(tiny.BAD_PROMPTS)
            model.apply(plan, directions)
            edited = model.get_logits(tiny.BAD_PROMPTS)
            model.restore()
            tolerance = 1e-6 if dtype == torch.float64 else 1e-3
            change = (before - edited).norm()
            assert (hooked - edited).norm() < tolerance * change
            assert change > 0.01 * before.norm()
        finally:
            model.model.to(torch.float32)
            model._factory.forget()

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_applying_and_removing_leaves_weights_bit_identical(
        self, family_model: Model, variant: RowNormalization
    ) -> None:
        model = family_model
        before = {name: value.clone() for name, value in model.model.state_dict().items()}
        plan, directions = some_plan(variant), some_directions(model)
        with model.edited(plan, directions):
            after_hooks = model.model.state_dict()
            assert all(torch.equal(before[name], after_hooks[name]) for name in before)
        model.apply(plan, directions)
        assert model.is_edited
        assert any(not torch.equal(before[n], v) for n, v in model.model.state_dict().items())
        model.restore()
        after = model.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_bfloat16_hooks_and_weights_agree_within_rounding(self, tmp_path: Path) -> None:
        path = tiny.folder(tmp_path, initializer_range=0.1)
        model = Model(Settings(model=str(path), dtypes=["bfloat16"], response_prefix=""))
        plan, directions = some_plan("full"), some_directions(model)
        before = model.get_logits(tiny.BAD_PROMPTS)
        with model.edited(plan, directions):
            hooked = model.get_logits(tiny.BAD_PROMPTS)
        model.apply(plan, directions)
        edited = model.get_logits(tiny.BAD_PROMPTS)
        assert (hooked - edited).norm() < 0.1 * (before - edited).norm()

    def test_hooks_are_gone_after_an_error(self, llama: Model) -> None:
        before = llama.get_logits(["x"])
        with (
            pytest.raises(RuntimeError, match="on purpose"),
            llama.edited(some_plan("none"), some_directions(llama)),
        ):
            raise RuntimeError("on purpose")
        assert torch.equal(before, llama.get_logits(["x"]))

    def test_zero_kernel_and_zero_direction_leave_modules_alone(self, llama: Model) -> None:
        plan = Plan.create(
            direction_scope="per layer",
            direction_index=None,
            kernels={"attn": AbliterationParameters(1.0, 0.0, 1.0, 0.0)},
            row_normalization="none",
        )
        names = list(llama.plan_edits(plan, some_directions(llama)))
        assert names == ["model.layers.0.self_attn.o_proj"]
        assert not llama.plan_edits(some_plan("none"), torch.zeros(4, llama.hidden_size))

    def test_abliterate_applies_the_formula_and_reload_undoes_it(self, llama: Model) -> None:
        directions = some_directions(llama)
        kernel = AbliterationParameters(1.0, 1.0, 1.0, 5.0)
        before = {
            name: [matrix.clone() for matrix in matrices]
            for name, matrices in llama.get_layer_matrices(2).items()
        }
        assert llama.settings.row_normalization == "full"
        llama.abliterate(directions, 1.5, {"attn": kernel, "mlp": kernel})
        v = functional.normalize((directions[2] + directions[3]) / 2, dim=0)
        for component, matrices in llama.get_layer_matrices(2).items():
            weight = before[component][0]
            norms = weight.norm(dim=1, keepdim=True)
            rows = weight / norms
            expected = functional.normalize(rows - torch.outer(v, v @ rows), dim=1) * norms
            torch.testing.assert_close(matrices[0], expected, rtol=1e-4, atol=1e-5)
        llama.reload_model()
        for component, matrices in llama.get_layer_matrices(2).items():
            assert torch.equal(matrices[0], before[component][0])

    def test_abliterate_refuses_unknown_components(self, llama: Model) -> None:
        kernel = AbliterationParameters(1.0, 1.0, 1.0, 5.0)
        with pytest.raises(ValueError, match="unknown components"):
            llama.abliterate(some_directions(llama), None, {"experts": kernel})

    def test_unedited_shows_the_original_for_a_while(self, llama: Model) -> None:
        original = llama.get_logits(["x"])
        llama.apply(some_plan("pre"), some_directions(llama))
        edited = llama.get_logits(["x"])
        with llama.unedited():
            assert torch.equal(llama.get_logits(["x"]), original)
        assert torch.equal(llama.get_logits(["x"]), edited)
        llama.restore()
        assert torch.equal(llama.get_logits(["x"]), original)


class TestStructure:
    def test_components_layers_and_matrices(self, family_model: Model) -> None:
        assert family_model.get_abliterable_components() == ["attn.o_proj", "mlp.down_proj"]
        assert len(family_model.get_layers()) == family_model.n_layers == 3
        matrices = family_model.get_layer_matrices(1)
        assert sorted(matrices) == ["attn.o_proj", "mlp.down_proj"]
        for writer in family_model.writers:
            assert writer.weight().shape[0] == family_model.hidden_size


class TestResiduals:
    def test_residuals_are_layer_outputs_at_the_last_position(self, family_model: Model) -> None:
        prompts = ["Hi", "A much longer prompt than the other one, so that padding matters."]
        captured = family_model.get_residuals(prompts)
        assert captured.shape == (2, 4, family_model.hidden_size)
        assert captured.dtype == torch.float32
        for row, prompt in enumerate(prompts):  # alone, so without padding
            batch = family_model._encode([prompt])
            with torch.inference_mode():
                states = family_model.model(**batch, output_hidden_states=True).hidden_states
            for index in range(3):  # the last one that transformers returns is normed
                expected = states[index][0, -1]
                torch.testing.assert_close(captured[row, index], expected, rtol=1e-3, atol=1e-3)

    def test_last_residual_is_not_normed(self, llama: Model) -> None:
        captured = llama.get_residuals(["Hi"])[:, -1]
        logits = llama.model.lm_head(llama.model.model.norm(captured))
        torch.testing.assert_close(logits, llama.get_logits(["Hi"]), rtol=1e-4, atol=1e-4)

    def test_batches_and_means_agree_with_single_prompts(self, llama: Model) -> None:
        llama.batch_size = 3
        batched = llama.get_residuals_batched(tiny.GOOD_PROMPTS)
        single = torch.cat([llama.get_residuals([prompt]) for prompt in tiny.GOOD_PROMPTS])
        torch.testing.assert_close(batched, single, rtol=1e-3, atol=1e-4)
        mean = llama.get_residual_means(tiny.GOOD_PROMPTS)
        torch.testing.assert_close(mean, single.double().mean(dim=0), rtol=1e-3, atol=1e-4)


class TestGeneration:
    def test_greedy_equals_transformers_generate(self, family_model: Model) -> None:
        prompts = tiny.BAD_PROMPTS[:5]
        ours = family_model.get_responses(prompts, max_new_tokens=12)
        batch, output = family_model.generate(prompts, max_new_tokens=12)
        new = output[:, batch["input_ids"].shape[1] :]
        theirs = family_model.tokenizer.batch_decode(new, skip_special_tokens=True)
        assert ours == theirs

    def test_decided_rows_leave_and_others_are_not_disturbed(self, llama: Model) -> None:
        full = llama.get_responses(tiny.BAD_PROMPTS, max_new_tokens=16)
        wanted = full[0][:3]
        cut = llama.get_responses(
            tiny.BAD_PROMPTS, max_new_tokens=16, decided=lambda text: wanted in text
        )
        for whole, short in zip(full, cut, strict=True):
            assert whole.startswith(short)
            assert (wanted in whole) == (wanted in short)
            assert short == whole or wanted in short
        assert len(cut[0]) < len(full[0])

    def test_batched_keeps_the_order(self, llama: Model) -> None:
        llama.batch_size = 4
        whole = llama.get_responses_batched(tiny.BAD_PROMPTS, max_new_tokens=6)
        single = [llama.get_responses([p], max_new_tokens=6)[0] for p in tiny.BAD_PROMPTS]
        assert whole == single

    def test_streamed_reply_is_the_greedy_reply(self, llama: Model) -> None:
        pieces = list(llama.stream_reply(llama.get_chat("Hello"), max_new_tokens=8))
        assert "".join(pieces) == llama.get_responses(["Hello"], max_new_tokens=8)[0]

    def test_closing_a_stream_stops_it(self, llama: Model) -> None:
        stream = llama.stream_reply(llama.get_chat("Hello"), max_new_tokens=100_000)
        next(stream)
        stream.close()

    def test_logprobs_are_normalised(self, llama: Model) -> None:
        total = llama.get_logprobs(["a", "b"]).exp().sum(dim=-1)
        torch.testing.assert_close(total, torch.ones(2))


class TestTemplates:
    def encode(self, model: Model, prompt: str) -> list[int]:
        ids: list[int] = model._encode([prompt])["input_ids"][0].tolist()
        return ids

    def test_exactly_one_bos(self, llama: Model) -> None:
        ids = self.encode(llama, "Hi")
        bos = llama.tokenizer.bos_token_id
        assert ids[0] == bos
        assert ids[1] != bos

    def test_a_doubled_bos_becomes_one(self, tmp_path: Path) -> None:
        template = "<|im_start|>" + tiny.CHAT_TEMPLATE
        model = load(tiny.folder(tmp_path, chat_template=template))
        ids = self.encode(model, "Hi")
        assert ids[0] == model.tokenizer.bos_token_id != ids[1]

    def test_system_prompts(self, llama: Model) -> None:
        assert "You are a helpful assistant." in llama.prompt_text("Hi")
        assert "Be brief." in llama.prompt_text(Prompt("Hi", "Be brief."))
        assert "system" not in llama.prompt_text(Prompt("Hi", None))

    def test_a_template_without_system_role_gets_none(self, tmp_path: Path) -> None:
        template = (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            + tiny.CHAT_TEMPLATE
        )
        model = load(tiny.folder(tmp_path, chat_template=template))
        text = model.prompt_text("Hi")
        assert "helpful" not in text
        assert "Hi" in text

    def test_no_template_means_plain_text(self, tmp_path: Path) -> None:
        model = load(tiny.folder(tmp_path, chat_template=None))
        assert model.prompt_text("Hi").strip().endswith("Hi")

    def test_thinking_switch_is_turned_off(self, tmp_path: Path) -> None:
        template = (
            tiny.CHAT_TEMPLATE + "{% if enable_thinking is false %}<think></think>{% endif %}"
        )
        model = load(tiny.folder(tmp_path, chat_template=template))
        assert model.prompt_text("Hi").endswith("<think></think>")

    def test_response_prefix_is_part_of_the_prompt(self, tmp_path: Path) -> None:
        model = load(tiny.folder(tmp_path))
        model.response_prefix = "Well, "
        assert model.prompt_text("Hi").endswith("assistant\nWell, ")


class TestPrefix:
    skips = Settings(model="x").chain_of_thought_skips

    def test_one_outlier_does_not_defeat_it(self) -> None:
        replies = [f"<think>Okay {i}" for i in range(99)] + ["No."]
        assert common_prefix(replies) == "<think>Okay "
        assert common_prefix([*replies[:90], *["No."] * 10]) == ""

    def test_short_replies_end_it(self) -> None:
        assert common_prefix(["Sure", "Sure, yes"]) == "Sure"
        assert common_prefix([]) == ""

    @pytest.mark.parametrize("opening", ["<think>\nOkay", "<thought>", "[THINK]x"])
    def test_reasoning_blocks_are_closed(self, opening: str) -> None:
        closed = close_reasoning(opening, self.skips)
        assert closed in {"<think></think>", "<thought></thought>", "[THINK][/THINK]"}
        assert close_reasoning("Sure", self.skips) == "Sure"

    def test_a_block_that_the_template_opens_is_closed(self) -> None:
        assert closing_of_template("<|assistant|><think>\n", self.skips) == "</think>"
        assert closing_of_template("<|assistant|>", self.skips) is None


class TestLoading:
    def test_a_dtype_that_fails_gives_way_to_the_next(self, tmp_path: Path) -> None:
        # Weights beyond float16's range: the test generation overflows there.
        model = tiny.model()
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(1e6)
        model.save_pretrained(tmp_path)
        tiny.tokenizer().save_pretrained(tmp_path)
        loaded = Model(Settings(model=str(tmp_path), dtypes=["float16", "float32"]))
        assert loaded.dtype == torch.float32

    def test_after_an_interruption_no_other_dtype_is_tried(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from heretic.model import loading

        def interrupted(*_: Any) -> None:
            raise RuntimeError("a library says: KeyboardInterrupt: ")

        tiny.folder(tmp_path)
        monkeypatch.setattr(loading, "_load_weights", interrupted)
        with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
            Model(Settings(model=str(tmp_path), dtypes=["bfloat16", "float32"]))

    def test_every_dtype_failing_is_said(self, tmp_path: Path) -> None:
        model = tiny.model()
        with torch.no_grad():
            model.lm_head.weight.fill_(float("nan"))
        model.save_pretrained(tmp_path)
        tiny.tokenizer().save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"float32: .*not finite"):
            load(tmp_path)

    def test_auto_on_a_cpu_follows_the_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from heretic.model import loading

        cpu = torch.device("cpu")
        monkeypatch.setattr(loading, "cpu_has_bfloat16", lambda: True)
        assert resolve_dtype("auto", cpu) == torch.bfloat16
        monkeypatch.setattr(loading, "cpu_has_bfloat16", lambda: False)
        assert resolve_dtype("auto", cpu) == torch.float32
        assert resolve_dtype("auto", torch.device("cuda")) == "auto"

    def test_an_accelerator_takes_more_rows_for_more_plans(
        self, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Plans share at most a quarter of its memory, however many; a CPU gains nothing."""
        found = {}
        for device in ("cpu", "cuda"):
            monkeypatch.setattr(Model, "device", torch.device(device))
            for memory in (10**6, 10**9):
                monkeypatch.setattr(machine, "total_memory", {torch.device(device): memory}.get)
                found[device, memory] = llama._automatic_batch_size()
        assert found["cpu", 10**9] == (128, 0)
        size, most = found["cuda", 10**9]
        assert size == 128 < most
        size, most = found["cuda", 10**6]
        assert size <= most < 2 * size  # too little for one plan's batch: plans take turns

    def test_unknown_dtype(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="float99"):
            Model(Settings(model=str(tiny.folder(tmp_path)), dtypes=["float99"]))

    @pytest.mark.parametrize("name", ["no/such-model", "./nowhere"])
    def test_missing_model_is_one_line(self, name: str) -> None:
        with pytest.raises(ModelError) as caught:
            Model(Settings(model=name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_remote_code_needs_consent(self, tmp_path: Path) -> None:
        tiny.tokenizer().save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(
            '{"model_type": "own", "auto_map": {"AutoConfig": "own.Own", '
            '"AutoModelForCausalLM": "own.OwnModel"}}'
        )
        (tmp_path / "own.py").write_text("raise SystemExit('ran without consent')\n")
        with pytest.raises(ModelError, match="its own code"):
            load(tmp_path)

    def test_pad_token_falls_back_to_eos(self, tmp_path: Path) -> None:
        tiny.model().save_pretrained(tmp_path)
        tokenizer = tiny.tokenizer()
        tokenizer.pad_token = None
        tokenizer.save_pretrained(tmp_path)
        model = load(tmp_path)
        assert model.tokenizer.pad_token == model.tokenizer.eos_token
        assert model.tokenizer.padding_side == "left"

    def test_out_of_memory_halves_the_batch_and_goes_on(self) -> None:
        seen: list[int] = []
        sizes: list[int] = []

        def work(part: slice) -> None:
            if part.stop - part.start > 3:
                raise torch.OutOfMemoryError
            seen.extend(range(part.start, part.stop))

        assert halving(10, 8, work, sizes.append) == 2
        assert seen == list(range(10))
        assert sizes == [4, 2]

    def test_one_row_too_many_is_raised(self) -> None:
        def work(part: slice) -> None:
            raise torch.OutOfMemoryError

        with pytest.raises(ModelError, match="single prompt"):
            halving(2, 2, work, lambda size: None)


class TestMachine:
    @pytest.mark.parametrize(
        ("quota", "cores"), [("150000 100000\n", 2), ("1000 100000\n", 1), ("max 100000\n", None)]
    )
    def test_a_containers_quota_limits_threads(
        self, quota: str, cores: int | None, tmp_path: Path
    ) -> None:
        available = usable_cores(tmp_path / "missing")
        (tmp_path / "cpu.max").write_text(quota)
        expected = available if cores is None else min(cores, available)
        assert usable_cores(tmp_path / "cpu.max") == expected

    def test_a_containers_limit_is_the_memory_that_batches_are_sized_by(
        self, tmp_path: Path
    ) -> None:
        cpu, limit = torch.device("cpu"), tmp_path / "memory.max"
        whole = machine.total_memory(cpu, [limit])
        limit.write_text("max\n")
        assert machine.total_memory(cpu, [limit]) == whole
        limit.write_text("3000000\n")
        assert machine.total_memory(cpu, [limit]) == 3_000_000
        limit.write_text(f"{whole * 2}\n")  # version 1 says "no limit" by a number beyond all
        assert machine.total_memory(cpu, [limit]) == whole
