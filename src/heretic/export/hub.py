"""Uploading a saved model to the Hub, with errors that say what to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import heretic
from heretic.errors import ExportError
from heretic.events import Reporter, Silent, StageFinished, StageStarted
from heretic.export.documents.places import shortened
from heretic.export.files import (
    CARD,
    DOCUMENTS,
    PARAMETERS,
    REPRODUCTION,
    SUMS,
    is_ours,
    read_json,
    relative_files,
    sums_text,
)
from heretic.system.adapters import ADAPTER_CONFIG
from heretic.system.hub import check_repository_id, display_name, is_local

if TYPE_CHECKING:
    from huggingface_hub import HfApi

STALE = ("*.safetensors", "*.safetensors.index.json", ADAPTER_CONFIG)
"""Files of an earlier upload that are deleted, since the new one may have other names."""

_HARMLESS = {".gitattributes", ".gitignore", *DOCUMENTS}
LOGIN = "Run `hf auth login`, or set HF_TOKEN, with a token that may write."


def check_upload(repo_id: str) -> str:
    """Check before the work starts that an upload is possible.

    Returns:
        The full repository id (`namespace/name`).

    Raises:
        ExportError: The id is malformed, there is no login, the token is not accepted, or the
            connection fails.
    """
    from huggingface_hub import HfApi, get_token

    check_repository_id(repo_id)
    if get_token() is None:
        raise ExportError("Uploading needs a login to the Hugging Face Hub.", remedy=LOGIN)
    with _hub_errors(repo_id):
        user = str(HfApi().whoami()["name"])
    return repo_id if "/" in repo_id else f"{user}/{repo_id}"


def upload(
    folder: Path, repo_id: str, *, private: bool = True, reporter: Reporter | None = None
) -> str:
    """Upload a folder that `save` wrote.

    A repository that is empty or holds an earlier upload of Heretic is reused; any other is
    refused. Local paths, such as a local base model's, are published by their last part only.

    Args:
        repo_id: `namespace/name`, or a name in the user's own namespace.
        private: Whether a new repository is private.

    Returns:
        The URL of the repository.

    Raises:
        ExportError: The folder is not an export, the login is missing or lacks the right to write,
            the name is taken, or the connection fails.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if not is_ours(folder):
        raise ExportError(
            f"{folder} is not (or not only) a model saved by Heretic, so it cannot be uploaded.",
            remedy=f"Name a folder that Heretic saved, with {PARAMETERS} and without other files.",
        )
    reporter = reporter or Silent()
    repo_id = check_upload(repo_id)
    reporter.emit(StageStarted(f"Uploading to {repo_id}"))
    api = HfApi(library_name="heretic", library_version=heretic.__version__)
    replaced = published_files(folder)
    names = relative_files(folder)
    with _hub_errors(repo_id):
        earlier = _claim(api, repo_id, private)
        stale = [name for name in earlier - set(names) if _is_stale(name)]
        # One commit: the repository holds the earlier upload or the whole new one.
        api.create_commit(
            repo_id=repo_id,
            operations=[
                *(CommitOperationAdd(name, replaced.get(name, folder / name)) for name in names),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            commit_message=f"Upload model made with Heretic {heretic.__version__}",
        )
    url = f"{api.endpoint}/{repo_id}"
    reporter.emit(StageFinished(url))
    return url


def published_files(folder: Path) -> dict[str, bytes]:
    """Files with local paths in them, by name, with each path cut to its last part.

    The digests of these files change with them.
    """
    changed = {}
    reproduction = read_json(folder / REPRODUCTION)
    # Files of earlier releases hold whole paths.
    published = {**reproduction, "settings": shortened(reproduction["settings"])}
    if (folder / ADAPTER_CONFIG).exists():
        config = read_json(folder / ADAPTER_CONFIG)
        base = str(config.get("base_model_name_or_path"))
        if is_local(base):
            changed[ADAPTER_CONFIG] = data = _json(
                {**config, "base_model_name_or_path": display_name(base)}
            )
            entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            published["files"] = {**published["files"], ADAPTER_CONFIG: entry}
    if published != reproduction:
        changed[REPRODUCTION] = _json(published)
    if changed and (folder / SUMS).is_file():
        digests = {name: str(entry["sha256"]) for name, entry in published["files"].items()}
        for name in (PARAMETERS, REPRODUCTION, CARD):
            data = changed.get(name) or (folder / name).read_bytes()
            digests[name] = hashlib.sha256(data).hexdigest()
        changed[SUMS] = sums_text(digests).encode()
    return changed


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _is_stale(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in STALE)


def _claim(api: HfApi, repo_id: str, private: bool) -> set[str]:
    """Create the repository, or check that an existing one may be used.

    Returns:
        The files that it holds.

    Raises:
        ExportError: It holds something else, or is public although a private one was requested.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repo_id, private=private, exist_ok=False)
        return set()
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
    info = api.model_info(repo_id)
    names = {sibling.rfilename for sibling in info.siblings or ()}
    if PARAMETERS not in names and names - _HARMLESS:
        raise ExportError(
            f"The repository {repo_id} exists and holds something else than a Heretic model.",
            remedy="Choose another name (upload_repo_id).",
        )
    if private and not info.private:
        raise ExportError(
            f"The repository {repo_id} exists and is public, and a private one was requested.",
            remedy="Make it private on the Hub, or choose another name (upload_repo_id).",
        )
    return names


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub and of the connection to it into one line with a remedy."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except (ExportError, KeyboardInterrupt):
        raise
    except Exception as error:
        cause = _root(error)
        if isinstance(cause, HfHubHTTPError):
            raise _refusal(cause, repo_id) from error
        if isinstance(cause, OfflineModeIsEnabled):
            raise ExportError(
                "Uploading is not possible in offline mode.", remedy="Unset HF_HUB_OFFLINE."
            ) from error
        # The Hub's client moved from httpx to httpx2. The bases of HfHubHTTPError include the base
        # of all connection errors of the one in use.
        if isinstance(cause, (OSError, *HfHubHTTPError.__bases__)):
            raise ExportError(
                f"The connection to the Hub failed: {_line(cause)}.",
                remedy="Check the network and try again; files that arrived are not sent again.",
            ) from error
        if isinstance(cause, ValueError):
            raise ExportError(f"The Hub does not accept this upload: {_line(cause)}.") from error
        raise


def _root(error: BaseException) -> BaseException:
    """The error that the client wrapped into a RuntimeError, or the error itself."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _refusal(error: Any, repo_id: str) -> ExportError:
    """The error that explains the HTTP status of a failed upload."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    namespace = repo_id.partition("/")[0]
    if status == 401:
        return ExportError("The Hub does not accept your login.", remedy=LOGIN)
    if status == 403:
        return ExportError(
            f"Your login may not write to {repo_id} (403).",
            remedy=f"Use a token with write permission from an account that may write to "
            f"{namespace!r}; accept the terms if the repository is gated.",
        )
    if status == 404:
        return ExportError(
            f"The Hub has no repository {repo_id}, or your login may not see it (404).",
            remedy=f"Check that the user or organization {namespace!r} exists.",
        )
    if status == 409:
        return ExportError(
            f"The name {repo_id} is taken, or another upload to it is running (409).",
            remedy="Wait, or choose another name (upload_repo_id).",
        )
    if status in {402, 413}:
        return ExportError(
            f"The Hub refuses more storage for {namespace!r} ({status}).",
            remedy="Free some storage, or upload an adapter (--export-strategy adapter).",
        )
    return ExportError(
        f"The Hub refused the upload ({status}): {_line(error)}.", remedy="Try again later."
    )


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
