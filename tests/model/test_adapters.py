"""An adapter as the model: it is merged into the base that its configuration names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from tests.support import export_case, tiny
from tests.support.hub_server import Repository, serve

from heretic.config import Settings
from heretic.config.presets import model_facts
from heretic.errors import ExportError, HereticError, ModelError, SettingsError
from heretic.export import saving
from heretic.export.verify import reload
from heretic.model import Model
from heretic.system.adapters import find_adapter, model_identity

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def load(path: Path | str, **overrides: Any) -> Model:
    given = {"dtypes": ["float32"], "response_prefix": "", **overrides}
    return Model(Settings(model=str(path), **given))


def adapter_of(base: Path, folder: Path, **changes: Any) -> Path:
    """A LoRA adapter that changes something."""
    whole: Any = load(base).model
    config = LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], task_type=TaskType.CAUSAL_LM, **changes
    )
    wrapped = get_peft_model(whole, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    wrapped.save_pretrained(str(folder))
    return folder


def configure(folder: Path, **values: Any) -> Path:
    file = folder / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_of(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "adapter")


def test_it_is_merged_into_its_base(base: Path, adapter: Path) -> None:
    model = load(adapter)
    assert model.remarks == (f"{adapter} is an adapter: it is merged into its base, {base}",)
    found = model.get_logits(tiny.GOOD_PROMPTS)
    plain = load(base)
    before = plain.get_logits(tiny.GOOD_PROMPTS)
    PeftModel.from_pretrained(plain.model, str(adapter)).eval()
    wanted = plain.get_logits(tiny.GOOD_PROMPTS)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-1)
    assert not any("lora" in name for name, _ in model.model.named_parameters())


def test_its_edit_is_saved_as_a_whole_model(adapter: Path, tmp_path: Path) -> None:
    model = load(adapter)
    request = export_case.request(model.settings)
    with pytest.raises(ExportError, match="itself an adapter"):
        saving.check_export(model, tmp_path / "saved", "adapter", 1)
    with pytest.raises(ExportError, match="itself an adapter"):
        saving.check_place(request.options, tmp_path / "saved", "adapter")
    saved = saving.save(model, request, tmp_path / "saved", strategy="merge")
    assert not (saved / CONFIG).exists()
    assert (saved / "tokenizer.json").exists()
    with model.edited(request.trial.plan, request.directions):
        wanted = model.get_logits(tiny.GOOD_PROMPTS)
    assert torch.allclose(reload(saved, model).get_logits(tiny.GOOD_PROMPTS), wanted, atol=1e-3)


def test_what_heretic_saved_is_loaded_too(base: Path, tmp_path: Path) -> None:
    model = load(base)
    request = export_case.request(model.settings)
    saved = saving.save(model, request, tmp_path / "saved", strategy="adapter")
    with model.edited(request.trial.plan, request.directions):
        wanted = model.get_logits(tiny.GOOD_PROMPTS)
    assert torch.allclose(load(saved).get_logits(tiny.GOOD_PROMPTS), wanted, atol=1e-3)


def test_the_base_may_lie_beside_it(base: Path, adapter: Path) -> None:
    shutil.copytree(base, adapter / "base")
    configure(adapter, base_model_name_or_path="base")
    found = find_adapter(str(adapter))
    assert found is not None
    assert found.base == str(adapter / "base")
    load(adapter)


def test_its_own_tokenizer_counts(adapter: Path) -> None:
    tiny.tokenizer("{{ messages[-1]['content'] }}!").save_pretrained(adapter)
    assert load(adapter).prompt_text("x") == "x!"


def test_presets_and_identity_follow_the_base(base: Path, adapter: Path) -> None:
    assert model_facts(str(adapter), None).types == ("llama",)
    before = model_identity(str(adapter))
    shutil.copytree(base, adapter.parent / "other")
    configure(adapter, base_model_name_or_path=str(adapter.parent / "other"))
    moved = model_identity(str(adapter))
    tiny.folder(adapter.parent / "other", seed=1)
    assert len({before, moved, model_identity(str(adapter))}) == 3


def test_a_base_that_is_not_there(adapter: Path, tmp_path: Path) -> None:
    configure(adapter, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match=r"is an adapter, and its base .*gone.*base_model_name"):
        load(adapter)


@pytest.mark.parametrize("name", ["r", "missing", "unknown", "base"])
def test_an_adapter_that_does_not_fit(base: Path, adapter: Path, tmp_path: Path, name: str) -> None:
    """PEFT itself would leave out what it does not find, and warn."""
    tensors = load_file(adapter / WEIGHTS)
    if name == "r":
        configure(adapter, r=4)
    elif name == "base":
        other = tiny.folder(tmp_path / "other", hidden_size=16)
        configure(adapter, base_model_name_or_path=str(other))
    elif name == "missing":
        save_file({k: v for k, v in tensors.items() if "layers.1" not in k}, adapter / WEIGHTS)
    else:
        save_file({f"x.{k}": v for k, v in tensors.items()}, adapter / WEIGHTS)
    with pytest.raises(ModelError, match=r"adapter .* (does not fit|cannot be put on) its base"):
        load(adapter)


def test_kinds_that_cannot_be_merged(base: Path, adapter: Path, tmp_path: Path) -> None:
    soft = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    whole: Any = load(base).model
    get_peft_model(whole, soft).save_pretrained(str(tmp_path / "soft"))
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (configure(tmp_path / "soft", base_model_name_or_path=str(base)), {}, "PROMPT_TUNING"),
        (adapter, {"quantization": "bnb_4bit"}, "bnb_4bit"),
        (configure(shutil.copytree(adapter, tmp_path / "a"), task_type="SEQ_CLS"), {}, "SEQ_CLS"),
        (configure(shutil.copytree(adapter, tmp_path / "b"), peft_type="NEW"), {}, "NEW"),
        (
            configure(
                shutil.copytree(adapter, tmp_path / "c"), base_model_name_or_path=str(adapter)
            ),
            {},
            "itself an adapter",
        ),
    ]
    for folder, settings, said in cases:
        with pytest.raises((ModelError, SettingsError), match=said):
            load(folder, **settings)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"base_model_name_or_path": 3}'])
def test_a_damaged_configuration(adapter: Path, content: str) -> None:
    (adapter / CONFIG).write_text(content)
    with pytest.raises(HereticError, match=CONFIG):
        load(adapter)


def test_an_adapter_and_a_whole_model_in_one_folder(base: Path, adapter: Path) -> None:
    shutil.copyfile(base / "model.safetensors", adapter / "model.safetensors")
    with pytest.raises(ModelError, match=r"an adapter .* and a whole model"):
        load(adapter)


def test_weights_that_are_not_there(adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    (adapter / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="no weights"):
        load(adapter)
    torch.save(weights, adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="--allow-pickle"):
        load(adapter)
    load(adapter, allow_pickle=True)


ON_THE_HUB = """
import json
from heretic.config import Settings
from heretic.errors import HereticError
from heretic.model import Model

def outcome(name, **more):
    try:
        settings = Settings(model=name, dtypes=["float32"], response_prefix="", **more)
        return [*Model(settings).remarks]
    except HereticError as error:
        return str(error)

print(json.dumps([
    outcome("org/adapter"),
    outcome("org/adapter-bin"),
    outcome("org/bin"),
    outcome("org/bin", allow_pickle=True),
    outcome("org/none"),
]))
"""


def test_adapters_and_pickles_on_the_hub(base: Path, adapter: Path, tmp_path: Path) -> None:
    files = {name: (adapter / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    whole = {path.name: path.read_bytes() for path in base.iterdir() if path.suffix == ".json"}
    torch.save(load_file(base / "model.safetensors"), tmp_path / "x.bin")
    pickled = (tmp_path / "x.bin").read_bytes()
    with serve() as hub:
        hub.repositories = {
            "org/adapter": Repository(private=False, files=files),
            "org/adapter-bin": Repository(
                private=False, files={CONFIG: files[CONFIG], "adapter_model.bin": pickled}
            ),
            "org/bin": Repository(private=False, files={**whole, "pytorch_model.bin": pickled}),
            "org/none": Repository(private=False),
        }
        found = subprocess.run(
            [sys.executable, "-c", ON_THE_HUB],
            env=os.environ
            | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")},
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
    merged, adapter_bin, refused, allowed, none = json.loads(found.stdout.splitlines()[-1])
    assert merged == [f"org/adapter is an adapter: it is merged into its base, {base}"]
    assert "org/adapter-bin has its weights as pickles only (adapter_model.bin)" in adapter_bin
    assert "org/bin has its weights as pickles only" in refused
    assert "--allow-pickle" in refused
    assert allowed == []
    assert "org/none" in none
