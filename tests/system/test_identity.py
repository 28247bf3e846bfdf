"""Models and plugins are identified by their content."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from types import SimpleNamespace

import huggingface_hub
import pytest

from heretic.system import hub as identity
from heretic.system.adapters import model_identity
from heretic.system.hub import folder_hash, is_local, plugin_identity

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _ask_again():
    identity._hub_commit.cache_clear()
    yield
    identity._hub_commit.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a weight file too large to be read whole."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(identity.CHUNK * (identity.CHUNKS + 2)))
    return path


class TestFolders:
    def test_place_and_documents_do_not_count(self, folder):
        before = folder_hash(folder)
        for name in ("README.md", "reproduce.json", "abliteration_params.json", ".hidden.json"):
            (folder / name).write_text("changed")
        moved = folder.rename(folder.with_name("moved"))
        assert folder_hash(moved) == before
        assert model_identity(str(moved)) == f"sha256:{before}"

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
    def test_small_files_count(self, folder, name):
        before = folder_hash(folder)
        (folder / name).write_text("{ }")
        assert folder_hash(folder) != before

    @pytest.mark.parametrize("offset", [0, identity.CHUNK - 1, -1, -identity.CHUNK])
    def test_first_and_last_sample_reach_the_ends(self, folder, offset):
        before = folder_hash(folder)
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[offset] = 1
        path.write_bytes(data)
        assert folder_hash(folder) != before

    def test_size_counts(self, folder):
        before = folder_hash(folder)
        with (folder / "model.safetensors").open("ab") as file:
            file.write(b"\0")
        assert folder_hash(folder) != before


class TestHub:
    def test_a_commit_stands_for_itself(self):
        assert model_identity("org/name", COMMIT) == f"org/name@{COMMIT}"

    def test_unknown_to_hub_and_cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        assert model_identity("org/name") == "org/name"
        assert model_identity("org/name", "main") == "org/name@main"
        assert model_identity("") == ""
        assert model_identity("./nowhere") == "./nowhere"
        assert model_identity("not a name!") == "not a name!"

    def test_the_hub_is_asked_once(self, monkeypatch):
        asked = []

        def model_info(self, name, revision, timeout):
            asked.append((name, revision))
            return SimpleNamespace(sha=COMMIT)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        assert model_identity("org/name") == model_identity("org/name") == f"org/name@{COMMIT}"
        assert asked == [("org/name", None)]

    def test_else_the_cache(self, monkeypatch):
        path = f"cache/snapshots/{COMMIT}/config.json"
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: path)
        assert model_identity("org/name") == f"org/name@{COMMIT}"


def test_plugins(tmp_path):
    path = tmp_path / "length.py"
    path.write_text("x")
    assert plugin_identity("heretic.scorers.keyword:K") == "heretic.scorers.keyword:K"
    assert plugin_identity("nowhere.py:K") == "nowhere.py:K"
    found = plugin_identity(f"{path}:K")
    assert found.startswith("sha256:")
    assert found.endswith(":K")
    assert str(tmp_path) not in found


@pytest.mark.parametrize("name", ["./a", "~/a", "/a/b", "a/b/c", "a\\b"])
def test_places(name):
    assert is_local(name)


@pytest.mark.parametrize("name", ["", "name", "org/name"])
def test_hub_ids(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_local(name)
    if name:
        (tmp_path / name).mkdir(parents=True)
        assert is_local(name)


@pytest.mark.parametrize(
    ("parts", "seconds", "fits"),
    [([b"{", b"}"], 9.0, True), ([b" " * 2**20] * 17, 9.0, False), ([b"a", b"b"], -1.0, False)],
)
def test_a_small_file_is_small_and_comes_in_time(parts: list[bytes], seconds: float, fits: bool):
    if fits:
        assert identity._whole(iter(parts), monotonic() + seconds) == b"".join(parts)
        return
    with pytest.raises(ValueError, match="too long or too slow"):
        identity._whole(iter(parts), monotonic() + seconds)
