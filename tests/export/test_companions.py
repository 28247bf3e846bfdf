"""What lies beside saved weights: the base's own files of known kinds, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tests.support import export_case, hub_server, tiny, tiny_gguf
from tests.support.hub_server import Repository
from tests.support.search_case import Recorder
from transformers import AutoModelForCausalLM

from heretic.export import companions
from heretic.export.base_files import fetch
from heretic.export.code_files import referenced_code
from heretic.export.files import relative_files
from heretic.export.safetensors import stream
from heretic.export.saving import save
from heretic.export.weights import stored_dtype

WAYS = ("streamed", "memory", "adapter")

OWN = {
    "added_tokens.json": "{}",
    "LICENSE": "Licence terms",
    "USE_POLICY.md": "Terms of use",
    "Notice.txt": "Notes",
    "tokenizer.model": "a vocabulary",
    "preprocessor_config.json": '{"size": 7}',
    "generation_config.json": '{\n "do_sample": false,\n "temperature": 0.6, "eos_token_id": 2}',
    "additional_chat_templates/tool_use.jinja": "{{ messages }}",
}
"""Files that belong to a model, with made-up content: it must arrive to the byte."""

FOREIGN = {
    "train.log": "step 1",
    "trainer_state.json": "{}",
    "optimizer.pt": "numbers",
    "rng_state.pth": "numbers",
    "train.jsonl": "{}",
    "notice_board.csv": "1,2",
    "config.toml": "model = 'x'",
    "helper.py": "secret = 1",
    "checkpoints/run/manifest.json": "{}",
    "runs/events.out": "x",
    "wandb/debug.log": "x",
    "exported/model.safetensors": "x",
    ".env": "TOKEN=1",
    ".git/config": "x",
}
"""What training, or work in that folder, leaves."""


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(params=WAYS)
def saved(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Save the tiny model of a folder in one of the ways; gives the result, notices, the way."""

    def run(base: Path, destination: Path, **values: Any) -> tuple[Path, list[str], str]:
        if request.param == "memory":
            monkeypatch.setattr(stream, "source_of", lambda model: None)
        model = export_case.load(base, **values)
        heard = Recorder()
        strategy = "adapter" if request.param == "adapter" else "merge"
        wanted = export_case.request(model.settings)
        folder = save(model, wanted, destination, strategy=strategy, reporter=heard)
        return folder, heard.notices(), request.param

    return run


def test_known_kinds_arrive_to_the_byte_and_nothing_else(
    saved: Callable[..., Any], tmp_path: Path
) -> None:
    base = tiny.folder(tmp_path / "base")
    put(base, OWN | FOREIGN)
    folder, notices, way = saved(base, tmp_path / "out")
    present = set(relative_files(folder))
    for name in (*OWN, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (base / name).read_bytes(), name
    assert not present & set(FOREIGN)
    assert not any(name.startswith((".", "checkpoints", "runs", "wandb")) for name in present)
    assert ("config.json" in present) == (way != "adapter")
    (notice,) = notices
    for name in ("checkpoints/", "helper.py", "config.toml", "exported/", "train.jsonl"):
        assert name in notice
    assert ("optimizer.pt" in notice) == (way != "adapter")  # no weights are expected of one
    assert ".env" not in notice


def test_a_clean_base_gives_no_notice(saved: Callable[..., Any], tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    put(base, {**OWN, "README.md": "# Base\n"})
    _, notices, _ = saved(base, tmp_path / "out")
    assert notices == []


def test_links_are_not_followed_out_of_the_folder(
    saved: Callable[..., Any], tmp_path: Path
) -> None:
    base = tiny.folder(tmp_path / "base")
    put(tmp_path, {"secret.txt": "a secret", "private/x.jinja": "a secret"})
    put(base, {"LICENCE": "inside"})
    (base / "LICENSE").symlink_to(tmp_path / "secret.txt")
    (base / "tokenizer.model").symlink_to("../secret.txt")
    (base / "NOTICE").symlink_to(tmp_path / "nowhere")
    (base / "COPYING").symlink_to("COPYING")
    (base / "USE_POLICY.md").symlink_to("LICENCE")
    (base / "additional_chat_templates").symlink_to(tmp_path / "private")
    folder, notices, _ = saved(base, tmp_path / "out")
    assert all(b"a secret" not in (folder / name).read_bytes() for name in relative_files(folder))
    assert (folder / "USE_POLICY.md").read_text() == "inside"
    (notice,) = notices
    for name in ("LICENSE", "tokenizer.model", "NOTICE", "COPYING", "additional_chat_templates/x"):
        assert name in notice
    assert "links out of that folder" in notice


def test_pipes_and_unreadable_files_are_told(saved: Callable[..., Any], tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    os.mkfifo(base / "LICENSE")  # reading it would wait for ever
    folder, notices, _ = saved(base, tmp_path / "out")
    assert not (folder / "LICENSE").exists()
    assert len(notices) == 1
    assert "LICENSE" in notices[0]


def test_a_folder_of_links_is_a_whole_model(saved: Callable[..., Any], tmp_path: Path) -> None:
    """Weights may lie anywhere; what stands beside them is then written from memory."""
    real = tiny.folder(tmp_path / "disk", max_shard_size="40KB")
    put(real, {"generation_config.json": OWN["generation_config.json"]})
    base = tmp_path / "base"
    base.mkdir()
    for path in real.iterdir():
        (base / path.name).symlink_to(path)
    folder, _, way = saved(base, tmp_path / "out")
    assert {"tokenizer.json", "generation_config.json"} <= set(relative_files(folder))
    kept = json.loads((folder / "generation_config.json").read_text())
    assert (kept["do_sample"], kept["temperature"]) == (False, 0.6)
    if way != "adapter":
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert loaded.dtype == torch.float32
        assert loaded.generation_config.do_sample is False


def test_files_in_the_hubs_cache_are_copied(saved: Callable[..., Any], tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "c0ffee", repository / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(tiny.folder(tmp_path / "real"), blobs)
    put(blobs, OWN)
    for name in (*relative_files(tmp_path / "real"), "LICENSE", "tokenizer.model"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    folder, notices, _ = saved(snapshot, tmp_path / "out")
    assert (folder / "LICENSE").read_text() == OWN["LICENSE"]
    assert not (folder / "LICENSE").is_symlink()
    assert notices == []


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_the_dtype_of_the_files_is_kept_from_memory_too(
    stored: torch.dtype, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.folder(tmp_path / "base")
    weights = {
        name: tensor.to(stored) for name, tensor in load_file(base / "model.safetensors").items()
    }
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": str(stored)[6:]}))
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    searched = "bfloat16" if stored != torch.bfloat16 else "float32"
    model = export_case.load(base, dtypes=[searched])
    if form == "bin":
        (base / "model.safetensors").unlink()
        torch.save(weights, base / "pytorch_model.bin")
    monkeypatch.setattr(stream, "source_of", lambda model: None)
    assert stored_dtype(model) == str(stored)[6:]
    if form == "bin":
        return  # loading it again needs the consent to pickles
    heard = Recorder()
    wanted = export_case.request(model.settings)
    folder = save(model, wanted, tmp_path / "out", strategy="merge", reporter=heard)
    saved = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {stored}
    untouched = "model.embed_tokens.weight"
    assert torch.equal(saved[untouched], weights[untouched])
    assert (folder / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert heard.notices() == []


def test_several_dtypes_that_become_one_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.folder(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    half = {name: tensor.half() for name, tensor in weights.items() if "_proj" in name}
    save_file({**weights, **half}, base / "model.safetensors", metadata={"format": "pt"})
    model = export_case.load(base, dtypes=["float32"])
    monkeypatch.setattr(stream, "source_of", lambda model: None)
    heard = Recorder()
    wanted = export_case.request(model.settings)
    folder = save(model, wanted, tmp_path / "out", strategy="merge", reporter=heard)
    (dtype,) = {str(t.dtype)[6:] for t in load_file(folder / "model.safetensors").values()}
    other = {"float16": "float32", "float32": "float16"}[dtype]
    told = f"hold some weights in {other}; saved from memory, all are {dtype}"
    assert [told in notice for notice in heard.notices()] == [True]


def test_a_base_that_cannot_be_loaded_as_stored_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.folder(tmp_path / "base")
    model = export_case.load(base, dtypes=["bfloat16"])
    monkeypatch.setattr(stream, "source_of", lambda model: None)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "unknown"}))
    heard = Recorder()
    wanted = export_case.request(model.settings)
    folder = save(model, wanted, tmp_path / "out", strategy="merge", reporter=heard)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert any("saved as bfloat16" in notice for notice in heard.notices())


def test_a_gguf_file_has_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    file = tiny_gguf.write(tmp_path / "base" / "tiny.gguf", tiny_gguf.model())
    put(file.parent, {"LICENSE": "of another model"})
    model = export_case.load(file)
    heard = Recorder()
    wanted = export_case.request(model.settings)
    folder = save(model, wanted, tmp_path / "out", strategy="merge", reporter=heard)
    assert {"tokenizer.json", "config.json"} <= set(relative_files(folder))
    assert not (folder / "LICENSE").exists()
    assert any("licence is not copied" in notice for notice in heard.notices())
    assert any("saved as float32" in notice for notice in heard.notices())


def test_only_the_code_that_is_referred_to(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "config.json": json.dumps(
                {
                    "auto_map": {
                        "AutoConfig": "configuration_own.OwnConfig",
                        "AutoModel": "other/repo--modeling.Model",
                        "AutoModelForCausalLM": "modeling_own.OwnModel",
                        "AutoTokenizer": ["../outside.Slow", None],
                        "AutoProcessor": 7,
                    },
                    "custom_pipelines": {"own": {"impl": "pipeline_own.Pipe"}},
                }
            ),
            "tokenizer_config.json": "not JSON",
            "modeling_own.py": "from .layers.norm import Norm\nfrom . import parts, numbers\n",
            "layers/norm.py": "from ..deep import x\nfrom ...beyond import y\nimport torch\n",
            "deep.py": "from .modeling_own import circle",
            "parts.py": "def broken(:",
            "configuration_own.py": "",
            "pipeline_own.py": "",
            "unused.py": "",
            "modeling.py": "",
        },
    )
    put(tmp_path.parent, {"outside.py": "", "beyond.py": ""})
    assert referenced_code(tmp_path, companions.CONFIGURATIONS) == [
        "configuration_own.py", "deep.py", "layers/norm.py", "modeling_own.py", "parts.py",
        "pipeline_own.py",
    ]  # fmt: skip


def test_code_is_copied_unless_it_is_a_link_outside(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    put(tmp_path, {"secret.py": "secret = 1"})
    put(base, {"modeling_own.py": "from .parts import x", "parts.py": "x = 1", "other.py": ""})
    (base / "tool.py").symlink_to(tmp_path / "secret.py")
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.Model", "AutoConfig": "tool.Config"}
    (base / "config.json").write_text(json.dumps(config))
    found = companions.survey(base, companions.kinds("merge"), {"model.safetensors"})
    assert {"modeling_own.py", "parts.py", "config.json"} <= set(found.known)
    assert (found.foreign, found.outside) == (("other.py",), ("tool.py",))
    found = companions.survey(base, companions.kinds("adapter"), {"model.safetensors"})
    assert not {"modeling_own.py", "parts.py", "config.json"} & {*found.known, *found.foreign}


def test_what_the_cache_lacks_comes_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.folder(tmp_path / "base")
    put(base, {**OWN, **{k: v for k, v in FOREIGN.items() if not k.startswith(".")}})
    files = {name: (base / name).read_bytes() for name in relative_files(base)}
    with hub_server.serve() as hub:
        hub.repositories["org/tiny"] = Repository(False, files)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        huggingface_hub.close_session()
        commit = hub.repositories["org/tiny"].sha
        assert fetch("org/tiny", commit) is None
        snapshot = tmp_path / "cache" / "models--org--tiny" / "snapshots" / commit
        assert set(relative_files(snapshot)) == {
            *OWN, "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
            "helper.py",
        }  # fmt: skip
        hub.requests.clear()
        assert fetch("org/tiny", commit) is None
        assert len(hub.requests) == 1  # everything is in the cache
        hub.failures["/api/models/"] = (403, "gated")
        assert fetch("org/tiny", commit)
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("org/tiny", commit) == "offline mode"
