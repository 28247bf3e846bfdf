"""Identify models and plugins by their content, and ask the Hub.

A run belongs to the model's content, not to its name: a folder may be moved, or its model trained
further in place, and a branch on the Hub may get new commits.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from time import monotonic

from heretic.errors import ExportError
from heretic.system.files import expanded

CHUNK = 64 * 1024
"""Bytes per sample of a large file."""

CHUNKS = 16
"""Number of samples of a large file; files up to `CHUNK * CHUNKS` bytes are read whole."""

HUB_TIMEOUT = 5.0
"""Seconds to wait for the Hub to name a commit or to send a model's configuration."""

MISSING = 404
"""HTTP status of a file that does not exist."""

LARGEST_SMALL_FILE = 16 * 2**20
"""Bytes of a configuration or card that are read at most."""

CARD_TIMEOUT = 10.0
"""Seconds to wait for the Hub to send the base model's card."""

GGUF = ".gguf"
GGUF_MAGIC, GGUF_TEXT = b"GGUF", 8
LONGEST_TEXT = 256
"""Bytes of a key or value that are read at most."""

_MODEL_FILES = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".tiktoken", ".py"}
_VOCABULARIES = {"merges.txt", "vocab.txt"}
_DOCUMENTS = {"abliteration_params.json", "reproduce.json", "trainer_state.json"}
"""Files of a model folder that document how it was made and do not change what it does."""

_log = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def check_repository_id(repo_id: str) -> None:
    """Check a repository's name by the rules of the Hub, without asking it.

    Raises:
        ExportError: It is malformed.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ExportError(
            f"{repo_id!r} is not a valid repository id.", remedy="Use NAMESPACE/NAME."
        ) from error


def is_local(name: str) -> bool:
    """Whether the name of a model or data set is a path on this machine, not a Hub id."""
    in_repository = name.lower().endswith(GGUF) and name.count("/") > 1
    return bool(name) and (
        name.startswith((".", "~", "/", "\\"))
        or (name.count("/") > 1 and not in_repository)
        or "\\" in name
        or (name.lower().endswith(GGUF) and not in_repository)
        or expanded(name).exists()
    )


def display_name(model: str) -> str:
    """A name that may be published: a Hub id unchanged, or the last part of a local path."""
    name = expanded(model).resolve().name if is_local(model) else model
    return " ".join(name.split()) or "model"


def gguf_parts(name: str) -> tuple[str, str] | None:
    """Folder or Hub id, and file name, of a model that is a GGUF file; None for any other model.

    `folder/file.gguf` is a path. `org/name/file.gguf` is on the Hub unless such a path exists.
    """
    if not name.lower().endswith(GGUF) or expanded(name).is_dir():
        return None
    if is_local(name):
        path = Path(name)
        return str(path.parent), path.name
    organisation, repository, file = name.split("/", 2)
    return f"{organisation}/{repository}", file


def repository_of(name: str) -> str:
    """The Hub id of a model on the Hub, without the file name of a GGUF file."""
    parts = gguf_parts(name)
    return name if parts is None or is_local(name) else parts[0]


def content_identity(name: str, revision: str | None = None) -> str:
    """Identify a model by its content: a hash of its folder, or its Hub id with a commit.

    Args:
        name: Hub id, folder, or GGUF file.
        revision: Branch, tag or commit on the Hub; ignored for folders and files.

    Returns:
        `sha256:...` for a folder or a file; `org/name@commit` for a Hub id. Where neither the Hub
        nor the local cache knows the commit, the revision stands in its place, if there is one.
    """
    folder = expanded(name)
    if name and folder.is_dir():
        return f"sha256:{folder_hash(folder)}"
    if name.lower().endswith(GGUF) and folder.is_file():
        return f"sha256:{_sampled_hash(folder).hex()}"
    if not name or is_local(name):  # it does not exist, which loading reports
        return name
    if revision is not None and _COMMIT.fullmatch(revision):
        return f"{name}@{revision}"
    commit = _hub_commit(name, revision) or revision
    return f"{name}@{commit}" if commit else name


def folder_hash(folder: Path) -> str:
    """SHA-256 over the files that loading a model reads: small ones whole, large ones by samples.

    File names and sizes count; the folder's own path does not. Sixteen samples per weight file
    detect training of all layers; a change of only a few matrices can fall between samples.
    """
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and _is_model_file(path):
            total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            total.update(_sampled_hash(path))
    return total.hexdigest()


def plugin_identity(plugin: str) -> str:
    """A scorer plugin's name; for `file.py:Class`, the file's hash replaces its path."""
    location, _, class_name = plugin.rpartition(":")
    path = expanded(location)
    if path.suffix != ".py" or not path.is_file():
        return plugin
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}:{class_name}"


def _is_model_file(path: Path) -> bool:
    known = path.suffix in _MODEL_FILES or path.name in _VOCABULARIES
    return known and path.name not in _DOCUMENTS and not path.name.startswith(".")


def _sampled_hash(path: Path) -> bytes:
    """SHA-256 of a small file, or of samples of a large one at equal distances, ends included."""
    result = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= CHUNK * CHUNKS:
            result.update(file.read())
        else:
            for index in range(CHUNKS):
                file.seek((size - CHUNK) * index // (CHUNKS - 1))
                result.update(file.read(CHUNK))
    return result.digest()


@cache  # asked once, so that one process does not see two commits of one branch
def _hub_commit(name: str, revision: str | None) -> str | None:
    """The commit of a revision, from the Hub if it answers, else from the local cache; or None."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, file = gguf_parts(name) or (name, "config.json")
    try:
        return HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT).sha
    except HFValidationError:  # not a valid name on the Hub
        return None
    except Exception as error:  # offline, gated, missing: loading gives the error and the remedy
        _log.info("The Hub does not name the commit of %s: %s", name, error)
    cached = try_to_load_from_cache(repository, file, revision=revision)
    depth = file.count("/")
    return Path(cached).parents[depth].name if isinstance(cached, str) else None


def gguf_architecture(file: Path) -> str | None:
    """The architecture in a GGUF file; None unless it is the first entry, as in all files seen.

    Format: the page on GGUF among the documents of ggml (github.com/ggml-org/ggml).
    """
    try:
        with file.open("rb") as reader:
            magic, _counts, length = reader.read(4), reader.read(20), reader.read(8)
            key = reader.read(min(int.from_bytes(length, "little"), LONGEST_TEXT))
            kind = int.from_bytes(reader.read(4), "little")
            length = reader.read(8)
            value = reader.read(min(int.from_bytes(length, "little"), LONGEST_TEXT))
    except OSError:
        return None
    if (magic, key, kind) != (GGUF_MAGIC, b"general.architecture", GGUF_TEXT):
        return None
    return value.decode(errors="replace")


@cache  # asked once in a process, however often settings are made
def hub_text(model: str, file: str, revision: str | None, *, ask: bool = True) -> str | None:
    """The text of a small file, from the Hub's cache or else from the Hub.

    Without an answer no preset is chosen, and loading gives the error and the remedy.

    Args:
        ask: Whether the Hub is asked if the cache does not have it.

    Returns:
        None if the Hub says that there is no such file; empty if it is not known.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, file, revision=revision)
        if isinstance(found, str):
            return Path(found).read_text(encoding="utf-8")
    except Exception as error:  # not a valid name, or a file that cannot be read
        _log.info("No %s of %s: %s", file, model, error)
        return ""
    return _small_file(model, file, revision, timeout=HUB_TIMEOUT) if ask else ""


def base_folder(model: str, revision: str | None = None) -> Path | None:
    """The folder with the base model's files: a local folder, or its snapshot in the Hub cache.

    None if there is neither. None for a GGUF file too: files beside it may belong to other models.
    """
    if gguf_parts(model) is not None:
        return None
    if is_local(model):
        folder = expanded(model)
        return folder if folder.is_dir() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def model_text(model: str, file: str, revision: str | None) -> str:
    """The text of a small file of a model; empty if it has none, or if the Hub does not send it.

    Args:
        model: Folder, GGUF file or Hub id.
    """
    place, _ = gguf_parts(model) or (model, "")
    if not is_local(model):
        return hub_text(place, file, revision) or ""
    try:
        return (expanded(place) / file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # there is no such file, or it is not text
        _log.info("%s of %s cannot be read: %s", file, model, error)
        return ""


@cache  # a command may ask before slow imports, and what loads the model asks again
def ask_for(model: str, revision: str | None) -> None:
    """Ask the Hub once, and not for long, whether there is a model that is not on this machine.

    Raises:
        HfHubHTTPError: The Hub says that there is none, or does not give it.
        LocalEntryNotFoundError: There is no answer.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
    )

    repository, file = gguf_parts(model) or (model, "config.json")
    if constants.HF_HUB_OFFLINE or is_local(model) or hub_text(repository, "config.json", revision):
        return
    try:
        with get_session().stream(  # of a GGUF file no more than the answer's head is read
            "GET",
            hf_hub_url(repository, file, revision=revision),
            headers=build_hf_headers(),
            timeout=HUB_TIMEOUT,
            follow_redirects=True,
        ) as reply:
            hf_raise_for_status(reply)
    except EntryNotFoundError:
        return  # an adapter, or files that loading says more about
    except HfHubHTTPError:
        raise
    except Exception as error:  # whatever the connection failed by
        raise LocalEntryNotFoundError(f"The Hub does not answer: {error}") from error


def download_card(model: str, revision: str | None) -> str | None:
    """The text of the model's card from the Hub; None if the Hub does not send one."""
    return _small_file(repository_of(model), "README.md", revision, timeout=CARD_TIMEOUT) or None


def _small_file(repository: str, file: str, revision: str | None, *, timeout: float) -> str | None:
    """The text of one file in a repository on the Hub.

    None if there is no such file; empty offline and after any other failure.

    There is one short try, because work continues without the file; the library's own download
    would try for half a minute.

    Args:
        timeout: Seconds from the request to the last byte.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return ""
    try:
        with get_session().stream(
            "GET",
            hf_hub_url(repository, file, revision=revision),
            headers=build_hf_headers(),
            timeout=timeout,
            follow_redirects=True,
        ) as reply:
            if reply.status_code == MISSING:
                return None
            reply.raise_for_status()
            return _whole(reply.iter_bytes(), monotonic() + timeout).decode("utf-8")
    except Exception as error:  # no connection, gated, missing, not a valid name
        _log.info("The Hub does not send %s of %s: %s", file, repository, error)
        return ""


def _whole(parts: Iterable[bytes], deadline: float) -> bytes:
    """The parts of an answer as one.

    Raises:
        ValueError: It takes too long, or is too large: what is small does neither.
    """
    data = bytearray()
    for part in parts:
        data += part
        if len(data) > LARGEST_SMALL_FILE or monotonic() > deadline:
            raise ValueError("the answer is too long or too slow")
    return bytes(data)
