"""A packed checkpoint is edited and saved in its own format: only what the plan edits changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support import export_case, packed, tiny
from tests.support.search_case import Recorder
from torch import Tensor, nn

from heretic.errors import AuditError, ExportError, ModelError, SettingsError
from heretic.export.safetensors import stream
from heretic.export.safetensors.checkpoint import INDEX, SINGLE
from heretic.export.safetensors.packed import PackedEdit, packed_with_edit, read
from heretic.export.saving import save
from heretic.model import Model
from heretic.pipeline.audit import audit_saved
from heretic.pipeline.single import apply_plan
from heretic.records import RowNormalization

DATA = Path(__file__).parents[1] / "data" / "packed"
HIDDEN = packed.SIZES["hidden_size"]
SCORERS = [{"plugin": "keyword", "name": "refusals"}, {"plugin": "kl_divergence", "name": "kl"}]

MOE: dict[str, Any] = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}  # fmt: skip

MAKERS: dict[str, Callable[[Path], Path]] = {
    "fp8": packed.fp8,
    "fp8 of one scale": lambda path: packed.fp8(path, block=None, scale_dtype=torch.float32),
    "fp8 experts": lambda path: packed.fp8(path, "qwen3_moe", **MOE),
    "fp8-channel": lambda path: packed.compressed(path, "fp8-channel"),
    "w8a16": lambda path: packed.compressed(path, "w8a16"),
    "w4a16-asymmetric": lambda path: packed.compressed(path, "w4a16-asymmetric"),
    "nvfp4": lambda path: packed.compressed(path, "nvfp4"),
}


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
    )


def exported(base: Path, to: Path, variant: RowNormalization) -> tuple[Model, Any, Recorder]:
    """The base in memory, the plan and what was said while it was saved."""
    settings, heard = export_case.settings(base), Recorder()
    model, plan = Model(settings, heard), export_case.plan(variant)
    directions = export_case.directions(hidden=HIDDEN)
    request = export_case.request(settings, plan, directions=directions)
    save(model, request, to, strategy="merge", reporter=heard)
    return model, plan, heard


def logits(model: Model) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.model(torch.arange(3, 60)[None]).logits.log_softmax(-1)
    return found


def kl(one: Tensor, other: Tensor) -> float:
    return float((one.exp() * (one - other)).sum(-1).mean())


@pytest.mark.parametrize("variant", ["none", "full"])
@pytest.mark.parametrize("kind", MAKERS)
def test_only_edited_weights_change_and_the_saved_model_is_the_edited_one(
    kind: str, variant: RowNormalization, tmp_path: Path
) -> None:
    base, to = MAKERS[kind](tmp_path / "base"), tmp_path / "saved"
    model, plan, heard = exported(base, to, variant)
    assert any("In memory its weights take" in text for text in heard.notices())
    assert any("edited weights were packed in the base's own format" in t for t in heard.notices())
    before, after = tensors(base), tensors(to)
    assert before.keys() == after.keys()
    changed = {name for name in before if not same(before[name], after[name])}
    assert changed
    assert all("o_proj." in name or "down_proj." in name for name in changed)
    assert not any(".layers.0.mlp" in name for name in changed), "the plan leaves it alone"
    assert (to / "config.json").read_bytes() == (base / "config.json").read_bytes()
    reloaded = Model(export_case.settings(to))
    directions, original = export_case.directions(hidden=HIDDEN), logits(model)
    with model.edited(plan, directions):
        hooked = logits(model)
    saved = logits(reloaded)
    assert kl(hooked, saved) < kl(original, hooked)
    # In memory, the edit of the weights is exact.
    model.apply(plan, directions)
    torch.testing.assert_close(logits(model), hooked, atol=1e-3, rtol=1e-3)
    model.restore()
    assert torch.equal(logits(model), original)


def test_each_edited_weight_is_the_edited_one_rounded(tmp_path: Path) -> None:
    base, to = packed.fp8(tmp_path / "base"), tmp_path / "saved"
    model, plan, _ = exported(base, to, "full")
    source = stream.source_of(Model(export_case.settings(to)))
    assert source is not None
    model.apply(plan, export_case.directions(hidden=HIDDEN))
    for name, weight in source.packed.items():
        parts = {part: read(entry) for part, entry in weight.parts.items()}
        ours, wanted = weight.codec.decode(parts), model.model.get_parameter(name).detach()
        # Three bits of mantissa. Few go to another level than the nearest, for the edit's sake.
        near = (ours - wanted).abs() <= wanted.abs() / 16 + wanted.abs().max() / 2**10
        assert near.float().mean() > 0.9
        assert (ours - wanted).norm() < 0.03 * wanted.norm()


def test_an_edit_below_half_a_step_is_not_rounded_away(tmp_path: Path) -> None:
    wide: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "head_dim": 64,
    }
    base = packed.compressed(tmp_path / "base", "w4a16", **wide)
    source = stream.source_of(Model(export_case.settings(base)))
    assert source is not None
    weight = source.packed["model.layers.1.mlp.down_proj.weight"]
    parts = {part: read(entry) for part, entry in weight.parts.items()}
    codec: Any = weight.codec
    original = codec.decode(parts)
    direction = torch.nn.functional.normalize(
        torch.randn(256, 1, generator=torch.Generator().manual_seed(0)), dim=0
    )
    edited = original - 0.5 * direction @ (direction.T @ original)
    nearest = codec.decode({**parts, **codec.encode(edited, parts)})
    edit = PackedEdit(lambda matrix: None, rank=1)
    after, left, (missing, wanted) = packed_with_edit(codec, original, edited, parts, edit)
    kept = codec.decode({**parts, **after})
    torch.testing.assert_close(kept - edited, left)
    change = 0.5 * (direction.T @ original).norm()
    assert (direction.T @ (nearest - edited)).norm() > 0.6 * change, "else this shows nothing"
    assert (direction.T @ left).norm() < 0.3 * change
    torch.testing.assert_close(float((direction.T @ left).norm()), missing, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(wanted, float(change), rtol=1e-3, atol=1e-3)


def test_parts_of_one_weight_may_lie_in_several_files(tmp_path: Path) -> None:
    base = packed.fp8(tmp_path / "base")
    state = load_file(base / SINGLE)
    scales = {name: tensor for name, tensor in state.items() if name.endswith("_scale_inv")}
    rest = {name: tensor for name, tensor in state.items() if name not in scales}
    exported(base, tmp_path / "whole", "full")
    (base / SINGLE).unlink()
    save_file(scales, base / "a.safetensors", metadata={"format": "pt"})
    save_file(rest, base / "b.safetensors", metadata={"format": "pt"})
    where = dict.fromkeys(scales, "a.safetensors") | dict.fromkeys(rest, "b.safetensors")
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    exported(base, tmp_path / "split", "full")
    whole, split = tensors(tmp_path / "whole"), tensors(tmp_path / "split")
    assert all(same(whole[name], split[name]) for name in whole)


def check_saved_to_rounding(model: Model, plan: Any, folder: Path) -> None:
    """The saved weights are the edited ones, but for bfloat16 before the edit and after it."""
    model.apply(plan, export_case.directions(hidden=HIDDEN))
    saved = Model(export_case.settings(folder)).model.state_dict()
    for name, tensor in model.model.state_dict().items():
        close = (saved[name] - tensor).abs() <= tensor.abs().max() * 2**-8
        assert close.all(), name


@pytest.mark.parametrize("library", ["awq", "gptq"])
def test_what_cannot_be_packed_again_is_saved_unquantised(library: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in (DATA / library).iterdir():
        if file.name != "reference.safetensors":
            (base / file.name).write_bytes(file.read_bytes())
    tiny.tokenizer().save_pretrained(base)
    model, plan, heard = exported(base, tmp_path / "saved", "full")
    assert any("loaded dequantised and saved unquantised" in text for text in heard.notices())
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in config
    dtypes = {"awq": torch.float16, "gptq": torch.bfloat16}  # of the tensors that are not packed
    assert {t.dtype for t in tensors(tmp_path / "saved").values()} == {dtypes[library]}
    check_saved_to_rounding(model, plan, tmp_path / "saved")


def test_mxfp4_experts_are_loaded_and_saved_unquantised(tmp_path: Path) -> None:
    base, sizes = tmp_path / "base", {**packed.SIZES, **MOE, "intermediate_size": 64}
    tiny.model("gpt_oss", **sizes).to(torch.bfloat16).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    generator, state = torch.Generator().manual_seed(0), load_file(base / SINGLE)
    for name in [n for n in state if n.endswith(("down_proj", "gate_up_proj"))]:
        experts, inputs, outputs = state.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        state[f"{name}_blocks"] = torch.randint(
            0, 256, (*shape, 16), generator=generator, dtype=torch.uint8
        )
        state[f"{name}_scales"] = torch.full(shape, 124, dtype=torch.uint8)
    packed.rewrite(base, state, {"quant_method": "mxfp4", "modules_to_not_convert": []})
    model, plan, heard = exported(base, tmp_path / "saved", "full")
    assert any("MXFP4" in text and "saved unquantised" in text for text in heard.notices())
    check_saved_to_rounding(model, plan, tmp_path / "saved")


def test_what_is_quantised_is_not_quantised_again(tmp_path: Path) -> None:
    base = packed.fp8(tmp_path / "base")
    with pytest.raises(SettingsError, match="is quantised already"):
        Model(export_case.settings(base, quantization="bnb_4bit"))


def test_a_whole_export_measures_rounding_beside_the_edit_and_is_audited(tmp_path: Path) -> None:
    base, to = packed.fp8(tmp_path / "base"), tmp_path / "saved"
    settings = export_case.settings(base, scorers=SCORERS, **export_case.prompt_files(tmp_path))
    heard = Recorder()
    apply_plan(settings, export_case.plan("full"), to, "merge", heard)
    scores = json.loads((to / "abliteration_params.json").read_text())["scores"]
    found = scores["packed_anew"]
    assert 0 < found["kl_of_rounding"] < found["kl_of_edit"]
    card = (to / "README.md").read_text()
    assert f"{found['kl_of_rounding']:.4f} nats from that of the edited model" in card
    assert not any("not audited" in text for text in heard.notices())
    assert audit_saved(to, heard) == []
    state = load_file(to / SINGLE)
    state["model.layers.0.self_attn.q_proj.weight"][0, 0] = 3
    save_file(state, to / SINGLE, metadata={"format": "pt"})
    with pytest.raises(AuditError):
        audit_saved(to, heard)
    assert "the plan does not edit them: model.layers.0.self_attn.q_proj.weight" in (
        (to / "README.md").read_text()
    )


def test_a_weight_in_fp8_that_transformers_runs_is_read(tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    from heretic.architectures.resolver import Writer

    levels, scale = packed.in_blocks(torch.randn(96, 64), packed.BLOCK)
    module = FP8Linear(64, 96, block_size=(40, 40))
    module.weight = nn.Parameter(levels, requires_grad=False)
    module.weight_scale_inv = nn.Parameter(scale, requires_grad=False)
    writer = Writer(0, "mlp.down_proj", "m", module, False)
    wanted = levels.float()
    for i in range(math.ceil(96 / 40)):
        for j in range(math.ceil(64 / 40)):
            wanted[i * 40 : (i + 1) * 40, j * 40 : (j + 1) * 40] *= scale[i, j]
    assert torch.equal(writer.weight(), wanted)
    writer.check_readable()
    with pytest.raises(ModelError):
        writer.stored()


def test_inspect_says_what_is_done_with_packed_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from heretic.main import run

    base = packed.fp8(tmp_path / "base")
    assert run(["inspect", str(base)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Quantised as FP8, blocks of 40 x 40: loaded dequantised; edited weights are" in shown
    packed.rewrite(base, load_file(base / SINGLE), {"quant_method": "modelopt"})
    with pytest.raises(ModelError, match="modelopt"):
        run(["inspect", str(base)])


def test_a_rounding_that_undoes_the_weight_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heretic.quantised.fp8 import BlockFp8

    base = packed.fp8(tmp_path / "base")
    broken = lambda self, weight, parts: {"weight": (-weight).to(torch.float8_e4m3fn)}  # noqa: E731
    monkeypatch.setattr(BlockFp8, "encode", broken)
    with pytest.raises(ExportError, match="cannot be packed anew"):
        exported(base, tmp_path / "saved", "full")
    assert not (tmp_path / "saved").exists()
