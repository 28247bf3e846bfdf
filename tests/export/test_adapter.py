"""Adapters in PEFT's format are exact: loaded and merged by PEFT, they give the merged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from tests.support import export_case, tiny
from transformers import AutoModelForCausalLM

from heretic.errors import ExportError
from heretic.export.adapter import adapter_tensors, target_modules, write_adapter
from heretic.model import Model
from heretic.records import LayerWeights, Plan, RowNormalization
from heretic.system.adapters import find_adapter

VARIANTS: tuple[RowNormalization, ...] = ("none", "pre", "full")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp(request.param)
    return export_case.load(tiny.folder(path, request.param, **FAMILIES[request.param]))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return export_case.load(tiny.folder(tmp_path_factory.mktemp("plain")))


def merged_state(
    model: Model, plan: Plan, directions: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    model.apply(plan, export_case.directions() if directions is None else directions)
    state = {name: value.clone() for name, value in model.model.state_dict().items()}
    model.restore()
    return state


def through_peft(model: Model, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    base = AutoModelForCausalLM.from_pretrained(model.settings.model, dtype=dtype)
    return PeftModel.from_pretrained(base, str(folder)).eval()


def error(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left.double() - right.double()).norm() / right.double().norm())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", export_case.PLANS)
def test_merged_by_peft_equals_our_merge(
    model: Model, kind: str, variant: RowNormalization, tmp_path: Path
) -> None:
    plan, directions = export_case.PLANS[kind](variant), export_case.basis()
    write_adapter(model, plan, directions, tmp_path)
    expected = merged_state(model, plan, directions)
    got = through_peft(model, tmp_path).merge_and_unload().state_dict()
    assert got.keys() == expected.keys()
    original = model.model.state_dict()
    changed = [name for name in expected if not torch.equal(expected[name], original[name])]
    assert len(changed) == 5  # all writers but the first layer's down projection
    for name, weight in expected.items():
        if name in changed:
            torch.testing.assert_close(got[name], weight, rtol=2e-5, atol=2e-6)
        else:
            assert torch.equal(got[name], weight)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", export_case.PLANS)
def test_unmerged_adapter_gives_the_edited_logits(
    model: Model, kind: str, variant: RowNormalization, tmp_path: Path
) -> None:
    plan, directions = export_case.PLANS[kind](variant), export_case.basis()
    write_adapter(model, plan, directions, tmp_path)
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        got = through_peft(model, tmp_path)(input_ids=ids).logits
        with model.edited(plan, directions):
            edited = model.model(input_ids=ids).logits
        plain = model.model(input_ids=ids).logits
    torch.testing.assert_close(got, edited, rtol=1e-3, atol=1e-4)
    assert error(plain, edited) > 0.05


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["rank 1", "rank 2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_differs_by_one_rounding(
    llama: Model, kind: str, variant: RowNormalization, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = export_case.load(Path(llama.settings.model), dtypes=[str(dtype).removeprefix("torch.")])
    plan, directions = export_case.PLANS[kind](variant), export_case.basis()
    write_adapter(base, plan, directions, tmp_path)
    expected = merged_state(base, plan, directions)
    got = through_peft(base, tmp_path, dtype).merge_and_unload().state_dict()
    for name, weight in expected.items():
        assert got[name].dtype == dtype
        assert error(got[name], weight) < torch.finfo(dtype).eps


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("kind", "rank"), [("rank 1", 1), ("rank 2", 2), ("free-form", 2), ("fit", 2)]
)
def test_files_are_as_peft_writes_them(
    llama: Model, kind: str, rank: int, variant: RowNormalization, tmp_path: Path
) -> None:
    write_adapter(llama, export_case.PLANS[kind](variant), export_case.basis(), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (config["r"], config["lora_alpha"]) == (rank, rank)
    assert config["use_dora"] == (variant == "full")
    assert config["base_model_name_or_path"] == llama.settings.model
    assert "model.layers.0.mlp.down_proj" not in config["target_modules"]
    assert len(config["target_modules"]) == 5
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.1.mlp.down_proj"
    assert tensors[f"{stem}.lora_A.weight"].shape == (rank, 48)
    assert tensors[f"{stem}.lora_B.weight"].shape == (32, rank)
    assert (f"{stem}.lora_magnitude_vector" in tensors) == (variant == "full")
    if variant == "full":
        norms = llama.model.get_parameter("model.layers.1.mlp.down_proj.weight").norm(dim=1)
        torch.testing.assert_close(tensors[f"{stem}.lora_magnitude_vector"], norms)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert size < 16_000 * rank


def test_the_base_is_found_from_any_working_directory(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(llama.settings.model)
    monkeypatch.chdir(base.parent)
    relative = llama.settings.replaced(model=f"./{base.name}")
    monkeypatch.setattr(llama, "settings", relative)
    write_adapter(llama, export_case.plan(), export_case.directions(), tmp_path)
    adapter = find_adapter(str(tmp_path))
    assert adapter is not None
    assert (adapter.base, adapter.base_revision) == (str(base), None)
    monkeypatch.chdir(tmp_path)
    AutoPeftModelForCausalLM.from_pretrained(str(tmp_path))


def test_peft_finds_the_base_by_the_config(llama: Model, tmp_path: Path) -> None:
    write_adapter(llama, export_case.plan(), export_case.directions(), tmp_path)
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path))
    assert loaded.peft_config["default"].use_dora


def test_saved_again_by_peft_it_has_the_same_tensors(llama: Model, tmp_path: Path) -> None:
    write_adapter(llama, export_case.plan(), export_case.directions(), tmp_path)
    through_peft(llama, tmp_path).save_pretrained(tmp_path / "theirs")
    ours = load_file(tmp_path / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_basis_of_one_direction_is_that_direction(llama: Model, tmp_path: Path) -> None:
    plan = export_case.plan()
    for name, directions in (("1", export_case.directions()), ("2", export_case.basis(k=1))):
        (tmp_path / name).mkdir()
        write_adapter(llama, plan, directions, tmp_path / name)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "12")
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name])


@pytest.mark.parametrize("kind", export_case.PLANS)
def test_rows_of_zeros_do_not_become_nan(
    llama: Model, kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged: Any = tiny.model()
    with torch.no_grad():
        damaged.get_parameter("model.layers.1.mlp.down_proj.weight")[4] = 0
    base = tmp_path_factory.mktemp("damaged")
    damaged.save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    model = export_case.load(base)
    directions = export_case.basis()
    directions[..., 4] = 0  # so that W + BA has a row of norm 0, and PEFT divides by it
    plan = export_case.PLANS[kind]("full")
    write_adapter(model, plan, directions, tmp_path)
    merged = through_peft(model, tmp_path).merge_and_unload()
    weight = merged.get_submodule("model.layers.1.mlp.down_proj").weight
    assert (weight[4] == 0).all()
    model.apply(plan, directions)
    expected = model.model.get_submodule("model.layers.1.mlp.down_proj").weight
    torch.testing.assert_close(weight, expected, rtol=2e-5, atol=2e-6)
    model.restore()


def test_a_plan_that_edits_nothing_is_refused(llama: Model, tmp_path: Path) -> None:
    plan = export_case.plan(attention=export_case.NEVER, mlp=export_case.NEVER)
    with pytest.raises(ExportError, match="leaves every module alone"):
        write_adapter(llama, plan, export_case.directions(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_without_directions_edit_nothing(llama: Model, tmp_path: Path) -> None:
    directions = export_case.basis()
    directions[:, 1] = 0
    second_alone = LayerWeights(((0.0, 1.0),) * 3)
    plan = export_case.plan("full", second_alone, second_alone, rank=2)
    assert llama.plan_edits(plan, directions) == {}
    assert len(llama.plan_edits(plan, export_case.basis())) == 6
    with pytest.raises(ExportError, match="leaves every module alone"):
        write_adapter(llama, plan, directions, tmp_path)


def test_zero_magnitude_rows_get_a_harmless_factor() -> None:
    from heretic.method.edits import LowRank

    for rank in (1, 2):
        factor = LowRank(torch.ones(rank, 3), torch.zeros(2, rank), torch.tensor([0.0, 2.0]))
        tensors = adapter_tensors({"m": factor})
        assert tensors["base_model.model.m.lora_B.weight"].tolist() == [[1.0] * rank, [0.0] * rank]


def test_modules_are_named_so_that_no_other_matches() -> None:
    names = ["model.layers.0.o_proj", "model.layers.1.o_proj"]
    assert target_modules(names, [*names, "model.layers.2.o_proj"]) == names
    pattern = target_modules(names, [*names, "vision.model.layers.0.o_proj"])
    assert isinstance(pattern, str)
    import re

    assert re.fullmatch(pattern, names[0])
    assert re.fullmatch(pattern, names[1])
    assert not re.fullmatch(pattern, "vision.model.layers.0.o_proj")
    assert not re.fullmatch(pattern, "model.layers.0xo_proj")
