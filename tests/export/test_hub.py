"""Uploading, against a server on this machine that speaks the Hub's endpoints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from tests.support import export_case, hub_server, tiny
from tests.support.hub_server import Hub, Repository
from transformers import AutoModelForCausalLM

from heretic.errors import ExportError
from heretic.export.documents.base_card import base_metadata
from heretic.export.documents.places import shortened
from heretic.export.files import check_destination
from heretic.export.hub import check_upload, upload
from heretic.export.saving import save
from heretic.model import Model

REPO = f"{hub_server.USER}/Tiny-heretic"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    root = tmp_path_factory.mktemp("secret-place")
    prompts = export_case.prompt_files(root)
    return export_case.load(tiny.folder(root / "Tiny-Base", max_shard_size="40KB"), **prompts)


@pytest.fixture(scope="module")
def merged(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = export_case.request(model.settings)
    folder = tmp_path_factory.mktemp("out") / "merged"
    return save(model, wanted, folder, strategy="merge")


@pytest.fixture(scope="module")
def adapter(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = export_case.request(model.settings)
    return save(model, wanted, tmp_path_factory.mktemp("out") / "adapter", strategy="adapter")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The local server, with the Hub's client pointed at it and logged in."""
    with hub_server.serve() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", hub_server.WRITE_TOKEN)
        huggingface_hub.close_session()
        yield running
    huggingface_hub.close_session()


def test_every_file_arrives(hub: Hub, merged: Path) -> None:
    url = upload(merged, REPO, private=True)
    assert url == f"{hub.url}/{REPO}"
    repository = hub.repositories[REPO]
    assert repository.private
    names = {path.name for path in merged.iterdir()}
    assert repository.files.keys() - {".gitattributes"} == names
    for path in merged.iterdir():
        assert repository.files[path.name] == path.read_bytes()


def test_what_was_uploaded_loads_again(hub: Hub, merged: Path, tmp_path: Path) -> None:
    upload(merged, REPO, private=False)
    assert not hub.repositories[REPO].private
    loaded = AutoModelForCausalLM.from_pretrained(REPO, cache_dir=tmp_path / "cache")
    local = AutoModelForCausalLM.from_pretrained(merged)
    for name, weight in local.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


def test_as_a_user_would_with_the_environment_alone(hub: Hub, merged: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from heretic.export.hub import upload;"
        "print(upload(Path(sys.argv[1]), sys.argv[2], private=True))"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(merged), "Tiny-heretic"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{hub.url}/{REPO}"
    assert "model.safetensors.index.json" in hub.repositories[REPO].files


def test_the_clients_default_way_of_committing(
    hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.large_files = False  # this server does not imitate Xet's servers
    upload(adapter, REPO, private=True)
    assert {path.name for path in adapter.iterdir()} <= hub.repositories[REPO].files.keys()
    hub.repositories.clear()
    hub.failures["/commit/"] = (403, "no")
    with pytest.raises(ExportError, match="may not write"):
        upload(adapter, REPO, private=True)


def test_paths_of_this_machine_stay_here(hub: Hub, model: Model, adapter: Path) -> None:
    upload(adapter, REPO, private=True)
    files = hub.repositories[REPO].files
    for name, content in files.items():
        assert b"secret-place" not in content, name
        assert str(Path.home()).encode() not in content or str(Path.home()) == "/", name
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "Tiny-Base"
    settings = json.loads(files["reproduce.json"])["settings"]
    assert settings["model"] == "Tiny-Base"
    assert settings["good_prompts"]["dataset"] == "good.txt"
    local = json.loads((adapter / "adapter_config.json").read_text())
    assert local["base_model_name_or_path"] == model.settings.model


def test_every_digest_fits_what_is_published(hub: Hub, merged: Path, adapter: Path) -> None:
    for folder in (merged, adapter):
        upload(folder, REPO, private=True)
        files = hub.repositories[REPO].files
        lines = [line.split("  ") for line in files["SHA256SUMS"].decode().splitlines()]
        assert {name for _, name in lines} == {p.name for p in folder.iterdir()} - {"SHA256SUMS"}
        for digest, name in lines:
            assert hashlib.sha256(files[name]).hexdigest() == digest, name
        for name, entry in json.loads(files["reproduce.json"])["files"].items():
            assert hashlib.sha256(files[name]).hexdigest() == entry["sha256"], name
            assert len(files[name]) == entry["size"]


def test_an_earlier_upload_is_replaced(hub: Hub, merged: Path, adapter: Path) -> None:
    upload(merged, REPO, private=True)
    upload(adapter, REPO, private=True)
    names = hub.repositories[REPO].files.keys()
    assert "adapter_model.safetensors" in names
    assert not any(name.startswith("model") for name in names)


def test_an_upload_is_one_commit(hub: Hub, merged: Path, adapter: Path) -> None:
    """Whatever ends it, the repository holds the earlier upload or the whole new one."""
    for count, folder in enumerate((adapter, merged, adapter), start=1):
        upload(folder, REPO, private=True)
        repository = hub.repositories[REPO]
        assert len(repository.commits) == count
    before = dict(repository.files)
    hub.failures["/commit/"] = (500, "no")
    with pytest.raises(ExportError):
        upload(merged, REPO, private=True)
    assert repository.files == before


def test_what_a_killed_process_left_in_an_export_is_no_obstacle(
    hub: Hub, adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "copy")
    left = [folder / f".{name}.4711.tmp" for name in ("README.md", "reproduce.json")]
    for path in left:
        path.write_text("half a docu")
    check_destination(folder, "")
    upload(folder, REPO, private=True)
    assert not any("4711" in name for name in hub.repositories[REPO].files)
    (folder / ".README.md.notes").write_text("mine")
    with pytest.raises(ExportError, match="did not save there"):
        check_destination(folder, "")


def test_uploading_again_sends_nothing_twice(hub: Hub, merged: Path) -> None:
    upload(merged, REPO, private=True)
    hub.requests.clear()
    upload(merged, REPO, private=True)
    assert not any(request.startswith("PUT") for request in hub.requests)


def test_a_repository_with_something_else_is_left_alone(hub: Hub, merged: Path) -> None:
    thesis = {"thesis.pdf": b"years of work", "README.md": b"mine"}
    hub.repositories[REPO] = Repository(private=True, files=dict(thesis))
    with pytest.raises(ExportError, match="holds something else") as caught:
        upload(merged, REPO, private=True)
    assert "upload_repo_id" in (caught.value.remedy or "")
    assert hub.repositories[REPO].files == thesis


def test_an_empty_repository_is_used(hub: Hub, adapter: Path) -> None:
    hub.repositories[REPO] = Repository(private=True, files={".gitattributes": b"*"})
    upload(adapter, REPO, private=True)
    assert "adapter_model.safetensors" in hub.repositories[REPO].files


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub, adapter: Path) -> None:
    hub.repositories[REPO] = Repository(private=False, files={})
    with pytest.raises(ExportError, match="is public, and a private one"):
        upload(adapter, REPO, private=True)
    assert hub.repositories[REPO].files == {}
    upload(adapter, REPO, private=False)


def test_without_a_login_the_remedy_is_said(
    hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ExportError, match="needs a login") as caught:
        upload(adapter, REPO, private=True)
    assert "hf auth login" in (caught.value.remedy or "")
    assert hub.requests == []


def test_a_wrong_token_is_said(hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(ExportError, match="does not accept your login"):
        upload(adapter, REPO, private=True)
    assert hub.repositories == {}


def test_a_token_that_may_only_read_is_said(
    hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub_server.READ_TOKEN)
    with pytest.raises(ExportError, match=r"may not write to .*403") as caught:
        upload(adapter, REPO, private=True)
    assert "write permission" in (caught.value.remedy or "")


def test_anothers_namespace_is_said(hub: Hub, adapter: Path) -> None:
    with pytest.raises(ExportError, match="may not write to someone/Tiny"):
        upload(adapter, "someone/Tiny", private=True)


@pytest.mark.parametrize("repo_id", ["a/b/c", "bad name", "-x/y", "a/b..c"])
def test_malformed_names_are_said_before_anything(hub: Hub, repo_id: str) -> None:
    with pytest.raises(ExportError, match="not a valid repository id"):
        check_upload(repo_id)
    assert hub.requests == []


def test_a_name_without_namespace_gets_the_users_own(hub: Hub) -> None:
    assert check_upload("Tiny-heretic") == REPO


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("/preupload/", 404, "has no repository"),
        ("/preupload/", 403, "may not write"),
        ("/lfs/", 403, "may not write"),
        ("/commit/", 409, "taken"),
        ("/commit/", 413, "more storage"),
        ("/commit/", 400, "refused the upload"),
        ("/api/validate-yaml", 400, "does not accept this upload"),
    ],
)
def test_refusals_on_the_way_are_errors_with_a_line(
    hub: Hub, adapter: Path, part: str, status: int, message: str
) -> None:
    hub.failures[part] = (status, "no")
    with pytest.raises(ExportError, match=message) as caught:
        upload(adapter, REPO, private=True)
    assert "\n" not in str(caught.value)
    assert hub_server.WRITE_TOKEN not in str(caught.value)


def test_a_lost_connection_is_said(
    hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ExportError, match="connection to the Hub failed"):
        upload(adapter, REPO, private=True)


def test_offline_mode_is_said(hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(ExportError, match="offline mode"):
        upload(adapter, REPO, private=True)


def test_only_exports_are_uploaded(hub: Hub, tmp_path: Path, merged: Path) -> None:
    (tmp_path / "private.txt").write_text("diary")
    with pytest.raises(ExportError, match="not \\(or not only\\) a model saved by Heretic"):
        upload(tmp_path, REPO, private=True)
    assert hub.requests == []


def test_the_bases_licence_comes_from_its_card_on_the_hub(hub: Hub) -> None:
    card = b"---\nlicense: other\nlicense_name: llama3.1\nlicense_link: LICENSE\n---\n"
    hub.repositories["org/base"] = Repository(private=False, files={"README.md": card})
    assert base_metadata("org/base") == {
        "license": "other",
        "license_name": "llama3.1",
        "license_link": "https://huggingface.co/org/base/blob/main/LICENSE",
    }
    assert base_metadata("org/absent") == {}


def test_files_in_scorers_options_are_named_without_their_folder() -> None:
    given = {"mine": {"words": "/home/me/words.txt", "all": ["~/a/b", "/think"], "limit": 3}}
    published = shortened({"scorer": given})["scorer"]
    assert published == {"mine": {"words": "words.txt", "all": ["b", "/think"], "limit": 3}}
