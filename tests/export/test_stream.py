"""Streaming: a copy of the base's files with edited writers is the edited model."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.support import export_case, tiny
from tests.support.search_case import Recorder
from torch import Tensor
from transformers import AutoModelForCausalLM

from heretic.errors import ExportError
from heretic.events import Silent, StageProgress
from heretic.export import weights
from heretic.export.safetensors import checkpoint as format_
from heretic.export.safetensors import stream
from heretic.export.safetensors.checkpoint import Checkpoint, read_checkpoint
from heretic.export.safetensors.sources import QuantisedSourceError, StreamError, find_sources
from heretic.export.safetensors.stream import Edit, ParameterEdit, edit_weight, edited_bias
from heretic.export.saving import save
from heretic.method.directions import layer_basis
from heretic.method.edits import make_ablation
from heretic.model import Model
from heretic.records import RowNormalization

VARIANTS: tuple[RowNormalization, ...] = ("none", "pre", "full")
SHARD = "40KB"
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
DEEPSEEK = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
MOE = {
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "mixtral": EXPERTS,
    "gpt_oss": {**EXPERTS, "head_dim": 8},
    "deepseek_v3": {**EXPERTS, **DEEPSEEK},
    "granitemoe": EXPERTS,
}


def base(path: Path, dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
    """A tiny model in several shards, with a tensor that transformers does not load."""
    tiny.model(**overrides).to(dtype).save_pretrained(path, max_shard_size=SHARD)
    tiny.tokenizer().save_pretrained(path)
    add_tensors(path, {"model.mtp.0.down_proj.weight": torch.arange(7.0).to(torch.bfloat16)})
    return path


def add_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "extra.safetensors", metadata={"format": "pt", "by": "a test"})
    index = folder / format_.INDEX
    data = json.loads(index.read_text())
    data["weight_map"] |= dict.fromkeys(tensors, "extra.safetensors")
    index.write_text(json.dumps(data, indent=1))


def checkpoint_of(folder: Path) -> Checkpoint:
    found = read_checkpoint(folder)
    assert found is not None
    return found


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {
        key: value for file in checkpoint_of(folder).files for key, value in load_file(file).items()
    }


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = base(tmp_path_factory.mktemp("base"), request.param, tie_word_embeddings=True)
    (folder / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE + "\n\n")
    (folder / "code").mkdir()
    (folder / "code" / "modeling.py").write_text("x = 1\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "code/modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").touch()
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "pytorch_model.bin.index.json"):
        (folder / name).write_bytes(b"weights")
    name = str(request.param).removeprefix("torch.")
    loaded = export_case.load(folder, dtypes=[name])
    for writer in loaded.writers:
        # A weight mapped from its file may lie at an odd address, where sums round otherwise.
        weight = writer.module.get_parameter("weight")
        weight.data = weight.data.clone()
    return loaded


def folder_of(model: Model) -> Path:
    return Path(str(model.settings.model))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", export_case.PLANS)
def test_streamed_weights_are_the_edited_ones_bit_for_bit(
    model: Model, kind: str, variant: RowNormalization, tmp_path: Path
) -> None:
    plan, directions = export_case.PLANS[kind](variant), export_case.basis()
    wanted = export_case.request(model.settings, plan, directions=directions)
    saved = tensors_of(save(model, wanted, tmp_path / "m", strategy="merge"))
    before = tensors_of(folder_of(model))
    edits = model.plan_edits(plan, directions)
    model.apply(plan, directions)
    edited = {name: model.model.get_submodule(name).weight.clone() for name in edits}
    model.restore()
    assert len(edits) == 5
    assert saved.keys() == before.keys()
    for key, weight in saved.items():
        name = key.removesuffix(".weight")
        expected = edited.get(name, before[key])
        assert bits(weight) == bits(expected), key
        assert (bits(weight) == bits(before[key])) == (name not in edited)


def test_a_streamed_model_gives_the_edited_logits(model: Model, tmp_path: Path) -> None:
    wanted = export_case.request(model.settings)
    folder = save(model, wanted, tmp_path / "m", strategy="merge")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    ids = torch.arange(3, 43).reshape(2, 20)
    model.apply(wanted.trial.plan, wanted.directions)
    with torch.no_grad():
        expected, got = model.model(input_ids=ids).logits, loaded(input_ids=ids).logits
    model.restore()
    assert torch.equal(got, expected)


def test_each_shard_is_looked_into_once(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = checkpoint_of(folder_of(model)).files
    read: list[Path] = []
    real = format_.read_header

    def counted(file: Path) -> list[format_.Entry]:
        read.append(file)
        return real(file)

    monkeypatch.setattr(format_, "read_header", counted)
    save(model, export_case.request(model.settings), tmp_path / "m", strategy="merge")
    assert len(read) > 1
    assert sorted(read) == sorted(shards)


def test_everything_else_is_copied_byte_for_byte(model: Model, tmp_path: Path) -> None:
    source, recorder = folder_of(model), Recorder()
    wanted = export_case.request(model.settings)
    folder = save(model, wanted, tmp_path / "m", strategy="merge", reporter=recorder)
    for name in (
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "code/modeling.py", "extra.safetensors", format_.INDEX,
    ):  # fmt: skip
        assert (folder / name).read_bytes() == (source / name).read_bytes(), name
    for name in ("original", ".cache", "pytorch_model.bin", "consolidated.safetensors"):
        assert not (folder / name).exists()
    (notice,) = recorder.notices()
    assert "consolidated.safetensors, original/, pytorch_model.bin" in notice
    for file in checkpoint_of(source).files:
        with safe_open(file, "pt") as one, safe_open(folder / file.name, "pt") as other:
            assert one.metadata() == other.metadata()
        assert (folder / file.name).stat().st_size == file.stat().st_size


def test_progress_ends_with_everything_written(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MEGABYTE", 1)
    monkeypatch.setattr(stream, "TOLD", 1000)
    recorder = Recorder()
    save(
        model,
        export_case.request(model.settings),
        tmp_path / "m",
        strategy="merge",
        reporter=recorder,
    )
    steps = [event for event in recorder.events if isinstance(event, StageProgress)]
    total = checkpoint_of(folder_of(model)).size
    assert (steps[-1].done, steps[-1].total, steps[-1].unit) == (total, total, "MB")
    assert [step.done for step in steps] == sorted(step.done for step in steps)


def test_the_dtype_of_the_base_is_kept(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", torch.bfloat16)
    model = export_case.load(folder)  # as float32
    wanted = export_case.request(model.settings)
    saved = tensors_of(save(model, wanted, tmp_path / "m", strategy="merge"))
    before = tensors_of(folder)
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    edits = model.plan_edits(wanted.trial.plan, wanted.directions)
    for name, edit in edits.items():
        expected = edit.edited_weight(before[f"{name}.weight"].float()).to(torch.bfloat16)
        assert torch.equal(saved[f"{name}.weight"], expected)


def test_a_layout_with_inputs_first(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "base", "gpt2", n_embd=32, n_layer=3, n_head=4, n_positions=256)
    model = export_case.load(folder)
    wanted = export_case.request(model.settings)
    saved = tensors_of(save(model, wanted, tmp_path / "m", strategy="merge"))
    assert all(key.startswith("transformer.") for key in saved)
    model.apply(wanted.trial.plan, wanted.directions)
    state = model.model.state_dict()
    assert all(torch.equal(weight, state[key]) for key, weight in saved.items())
    model.restore()


def test_names_of_the_bare_base_model_are_found(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    for file in checkpoint_of(folder).files:
        renamed = {key.removeprefix("model."): value for key, value in load_file(file).items()}
        save_file(renamed, file, metadata={"format": "pt"})
    index = json.loads((folder / format_.INDEX).read_text())
    names = {key.removeprefix("model."): file for key, file in index["weight_map"].items()}
    (folder / format_.INDEX).write_text(json.dumps({**index, "weight_map": names}))
    model = export_case.load(folder)
    wanted = export_case.request(model.settings)
    saved = tensors_of(save(model, wanted, tmp_path / "m", strategy="merge"))
    model.apply(wanted.trial.plan, wanted.directions)
    state = model.model.state_dict()
    model.restore()
    assert "layers.1.mlp.down_proj.weight" in saved
    edited = "layers.1.mlp.down_proj.weight"
    assert torch.equal(saved[edited], before_and_after(wanted, model)[f"model.{edited}"])
    assert state.keys() >= {f"model.{edited}"}


def before_and_after(wanted: Any, model: Model) -> dict[str, Tensor]:
    """The state dict of the edited model, by value."""
    model.apply(wanted.trial.plan, wanted.directions)
    state = {name: value.clone() for name, value in model.model.state_dict().items()}
    model.restore()
    return state


@pytest.mark.parametrize("reason", [errno.EINVAL, errno.ENOSPC])
def test_a_file_system_that_does_not_copy_by_itself(
    reason: int, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> int:
        raise OSError(reason, "no")

    wanted = export_case.request(model.settings)
    usual = tensors_of(save(model, wanted, tmp_path / "usual", strategy="merge"))
    monkeypatch.setattr(os, "sendfile", fail, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    if reason == errno.ENOSPC:
        with pytest.raises(ExportError, match="failed: no"):
            save(model, wanted, tmp_path / "m", strategy="merge")
        return
    other = tensors_of(save(model, wanted, tmp_path / "m", strategy="merge"))
    assert all(bits(other[key]) == bits(weight) for key, weight in usual.items())


# --- mixtures of experts --------------------------------------------------------------------


def written_by(model: Any) -> Iterator[tuple[str, bool, str | None]]:
    """The writers of a mixture of experts: name, whether inputs come first, bias."""
    inputs_first = model.config.model_type == "gpt_oss"
    for name in model.state_dict():
        if name.endswith((".o_proj.weight", ".down_proj.weight")):
            yield name, False, None
        elif name.endswith("experts.down_proj"):
            yield name, inputs_first, f"{name}_bias" if inputs_first else None


def in_memory(model: Any, edits: list[ParameterEdit]) -> None:
    """Edit the parameters one expert at a time, by the definition."""
    for change in edits:
        edit, parameter = change.edit, model.get_parameter(change.name)
        assert isinstance(edit.basis, Tensor)
        for matrix in parameter.data if parameter.dim() == 3 else [parameter.data]:
            weight = matrix.T if change.transposed else matrix
            ablation = make_ablation(weight.float(), edit.basis, edit.row_normalization)
            ablation_weights = ablation.directions.new_tensor(edit.ablation_weights)
            weight.copy_(ablation.edit(ablation_weights).edited_weight(weight.float()))
        if change.bias is not None:
            bias = model.get_parameter(change.bias).data
            along = bias.float() @ edit.basis.T
            bias.copy_(bias.float() - along * torch.tensor(edit.ablation_weights) @ edit.basis)


def expert_edits(model: Any, variant: RowNormalization) -> list[ParameterEdit]:
    plan, directions = export_case.plan(variant, rank=2), export_case.basis()
    edit = Edit(layer_basis(directions, 1, plan), (1.1, 0.6), variant)
    return [
        ParameterEdit(name, edit, transposed, bias) for name, transposed, bias in written_by(model)
    ]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", MOE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_are_edited_wherever_they_are_stored(
    kind: str, variant: RowNormalization, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = base(tmp_path / "base", dtype, model_type=kind, **MOE[kind])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder, max_shard_size=SHARD)
    source, edits = checkpoint_of(folder), expert_edits(model, variant)
    assert any("experts" in edit.name for edit in edits)
    (tmp_path / "m").mkdir()
    tensors = stream.tensor_edits(model, source, edits)
    stream.write_streamed(source, tensors, tmp_path / "m", Silent())
    model.config.save_pretrained(tmp_path / "m")
    in_memory(model, edits)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=dtype)
    expected = model.state_dict()
    for name, got in loaded.state_dict().items():
        if name.endswith("down_proj_bias"):
            torch.testing.assert_close(got, expected[name])
        else:
            assert torch.equal(got, expected[name]), name


def test_each_expert_has_its_own_tensor(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", model_type="mixtral", **MOE["mixtral"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    name = "model.layers.1.mlp.experts.down_proj"
    sources = find_sources(model, checkpoint_of(folder), [name])
    assert [source.key for source in sources[name]] == [
        f"model.layers.1.block_sparse_moe.experts.{expert}.w2.weight" for expert in range(4)
    ]


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", model_type="qwen3_moe", **MOE["qwen3_moe"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    source = checkpoint_of(folder)
    kept = {k: v for k, v in source.tensors.items() if "layers.2.mlp.experts.3.down" not in k}
    fewer = Checkpoint(source.folder, source.files, kept)
    with pytest.raises(StreamError, match=r"layers\.2\.mlp\.experts\.down_proj.*\[3, 32, 16\]"):
        stream.tensor_edits(model, fewer, expert_edits(model, "none"))


def test_a_bias_loses_its_part_along_the_directions() -> None:
    basis = export_case.basis()[1]
    edit = Edit(basis, (1.0, 0.5), "full")
    bias = torch.randn(4, 32)
    left = edited_bias(bias, edit) @ basis.T
    expected = bias @ basis.T * torch.tensor([0.0, 0.5])
    torch.testing.assert_close(left, expected, atol=1e-6, rtol=1e-5)


def test_gains_of_a_norm_that_follows() -> None:
    basis = torch.nn.functional.normalize(export_case.basis()[1][:1].double())
    gains = torch.rand(32).double() + 0.5
    edit = Edit(basis, (1.0,), "none", gains)
    weight = torch.randn(32, 48).double()
    edit_weight(weight, edit)
    normed = gains.unsqueeze(1) * weight
    assert (basis @ normed).norm() < 1e-12 * normed.norm()
    bias = torch.randn(32).double()
    assert (basis @ (gains * edited_bias(bias, edit))).abs() < 1e-12
    gains[3] = 0.0
    edit_weight(weight, edit)
    assert weight.isfinite().all()


# --- refusals ------------------------------------------------------------------------------


def quantise(folder: Path, dtype: torch.dtype) -> None:
    """Store the output projections of attention in eight bits, with scales."""
    for file in checkpoint_of(folder).files:
        tensors = load_file(file)
        for key in [key for key in tensors if key.endswith("o_proj.weight")]:
            tensors[key] = tensors[key].to(dtype)
            tensors[f"{key}_scale_inv"] = torch.ones(1, 1)
        save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
def test_a_quantised_base_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    model = export_case.load(folder)
    quantise(folder, dtype)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    wanted = export_case.request(model.settings)
    edits = stream.parameter_edits(model, wanted.trial.plan, wanted.directions)
    with pytest.raises(QuantisedSourceError, match=r"o_proj.weight is quantised .*fp8") as caught:
        stream.tensor_edits(model.model, checkpoint_of(folder), edits)
    assert "unquantised base" in str(caught.value)


@pytest.mark.parametrize("part", ["qweight", "weight_packed", "weight_blocks"])
def test_packed_weights_are_recognised_by_their_names(part: str, tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    model = export_case.load(folder)
    key = "model.layers.1.mlp.down_proj.weight"
    source = checkpoint_of(folder)
    tensors = dict(source.tensors)
    tensors[key.removesuffix("weight") + part] = tensors.pop(key)
    with pytest.raises(QuantisedSourceError, match="packed"):
        find_sources(model.model, Checkpoint(folder, source.files, tensors), [key])


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    model = export_case.load(folder)
    key = "model.layers.1.mlp.down_proj.weight"
    source = checkpoint_of(folder)
    tensors = {name: entry for name, entry in source.tensors.items() if name != key}
    with pytest.raises(StreamError, match=key) as caught:
        find_sources(model.model, Checkpoint(folder, source.files, tensors), [key])
    assert "--export-strategy adapter" in str(caught.value)


def test_what_cannot_be_streamed_is_saved_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base(tmp_path / "base")
    model = export_case.load(folder)
    wanted, recorder = export_case.request(model.settings), Recorder()

    def refuse(*args: Any) -> None:
        raise StreamError("It is put together.")

    monkeypatch.setattr(stream, "tensor_edits", refuse)
    saved = save(model, wanted, tmp_path / "m", strategy="merge", reporter=recorder)
    assert recorder.notices() == [
        "Saving from memory: It is put together.",
        "The base's files hold some weights in bfloat16; saved from memory, all are float32",
    ]
    state, got = before_and_after(wanted, model), load_file(saved / "model.safetensors")
    assert all(torch.equal(weight, state[key]) for key, weight in got.items())


def test_a_base_in_another_format_is_saved_from_memory(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    model = export_case.load(folder)
    for file in checkpoint_of(folder).files:
        file.rename(file.with_suffix(".bin"))
    wanted = export_case.request(model.settings)
    saved = save(model, wanted, tmp_path / "m", strategy="merge", max_shard_size=SHARD)
    assert len(list(saved.glob("model-*.safetensors"))) > 1
    assert (saved / "tokenizer.json").exists()


def test_a_model_loaded_quantised_is_not_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = export_case.load(base(tmp_path / "base"))
    model.options = replace(model.options, quantization="bnb_4bit")
    monkeypatch.delattr(weights, "as_stored")
    save(model, export_case.request(model.settings), tmp_path / "m", strategy="merge")
    assert checkpoint_of(tmp_path / "m").tensors


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_nothing(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = export_case.load(base(tmp_path / "base"))
    (tmp_path / "out").mkdir()

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(stream.TensorEdit, "apply", interrupt)
    with pytest.raises(ExportError if error is OSError else error):
        save(model, export_case.request(model.settings), tmp_path / "out" / "m", strategy="merge")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("damage", ["short", "long", "header", "empty"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "base")
    file = folder / format_.SINGLE
    data = file.read_bytes()
    changed = {"short": data[:-9], "long": data + b"x", "header": b"x" * 99, "empty": b""}
    file.write_bytes(changed[damage])
    with pytest.raises(ExportError, match=r"model\.safetensors is not a whole safetensors file"):
        read_checkpoint(folder)


def test_a_folder_without_a_whole_model_is_no_source(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    shutil.copytree(folder, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert read_checkpoint(tmp_path / "adapter") is None
    (folder / "extra.safetensors").unlink()
    assert read_checkpoint(folder) is None
    assert read_checkpoint(tmp_path) is None
