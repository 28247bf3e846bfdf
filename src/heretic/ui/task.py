"""What a worker is asked about a trial, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from heretic.errors import HereticError
from heretic.gguf.file_types import single_names
from heretic.system.hub import check_repository_id
from heretic.worker.protocol import Request, Sample, Save, Saved, Score, Strategy, Upload

Asked = tuple["Task", Request]


@dataclass(slots=True)
class Task:
    """A request about a trial, and its result.

    Attributes:
        kind: `sample`, `score`, `save` or `upload`.
        title: What was asked, for people.
        result: As the protocol says; None until it is there.
        error: Why there is none; empty if there is one, or may come.
        place: What is written to, with links resolved: a folder, or a repository on the Hub.
    """

    kind: Literal["sample", "score", "save", "upload"]
    title: str
    result: Mapping[str, Any] | None = None
    error: str = ""
    place: Path | str | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self.result is not None or bool(self.error)


def sampling(trial: int, *, first: int = 3) -> Asked:
    """Replies of the original and a trial to the first evaluation prompts."""
    return Task("sample", "Sample replies"), Sample(trials=[trial], first=first)


def scoring(request: Score) -> Asked:
    """Scores of a trial and the original."""
    which = "held-out prompts" if request.prompts == "held_out" else "the search's prompts"
    first = f", the first {request.first}" if request.first else ""
    tokens = f", replies of {request.tokens} tokens" if request.tokens else ""
    return Task("score", f"Scores on {which}{first}{tokens}"), request


def saving(trial: int, folder: Path, strategy: Saved, gguf_types: Sequence[str] = ()) -> Asked:
    """A trial's model, saved.

    Args:
        folder: With all links resolved.

    Raises:
        HereticError: The folder holds something, or with `gguf` no type is named.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise HereticError(f"{folder} is not empty.", remedy="Name a new folder.")
    if strategy == "gguf":
        single_names(gguf_types)  # which of them exist, the worker knows
    request = Save(trial=trial, folder=str(folder), strategy=strategy, gguf_types=[*gguf_types])
    return Task("save", f"Saving to {folder}", place=folder), request


def uploading(trial: int, repository: str, strategy: Strategy, *, private: bool = True) -> Asked:
    """A trial's model, uploaded to the Hub with the login of this machine.

    Raises:
        HereticError: The name is no repository's.
    """
    check_repository_id(repository)
    request = Upload(trial=trial, repository=repository, private=private, strategy=strategy)
    seen = "private" if private else "public"
    return Task("upload", f"Uploading to {repository} ({seen})", place=repository), request
