"""The files that belong beside a model's weights: tokenizer, configurations, code, licences.

They are copied from the base, in the same way however the weights are saved. What is of no known
kind stays where it is and is named: the base's folder may be a training folder, or the working
directory. Nothing is followed out of that folder, except into the Hub's cache.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from heretic.export.code_files import referenced_code
from heretic.export.files import DOCUMENTS

if TYPE_CHECKING:
    from heretic.export.request import Strategy

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"

MODEL_FILES = (
    CONFIG, "configuration.json", "quantize_config.json", "quant_config.json",
    "hf_quant_config.json", "quantization_config.json",
)  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "tokenizer.model.*", "tokenizer*.model", "spiece.model", "spm.model",
    "sentencepiece*.model", "*.bpe.model", "*.spm", "vocab.json", "vocab.txt", "vocab.bpe",
    "vocab-src.json", "vocab-tgt.json", "encoder.json", "merges.txt", "*.tiktoken", "tekken.json",
    "bpe.codes", "normalizer.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
PROCESSOR_FILES = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "image_processor_config.json", "feature_extractor_config.json",
)  # fmt: skip
CONFIGURATIONS = (CONFIG, "tokenizer_config.json", *PROCESSOR_FILES)
"""Files that may refer to Python files beside them."""

LICENCE_FILES = (
    "licen[cs]e*", "*_licen[cs]e*", "notice*", "copying*", "copyright*", "patents*", "*use_policy*",
    "acceptable_use*", "third_party*", "licenses/*",
)  # fmt: skip
VOCABULARIES = (
    "tokenizer.json", "tokenizer*.model*", "spiece.model", "spm.model", "sentencepiece*.model",
    "*.bpe.model", "*.spm", "vocab.*", "encoder.json", "*.tiktoken", "tekken.json",
)  # fmt: skip
"""Files that hold a vocabulary; with one of them the base's tokenizer is whole."""

LARGEST_LICENCE, TEXTS = 2**20, frozenset({"", ".txt", ".md", ".rst", ".html", ".pdf", ".rtf"})
"""Bytes, and endings of names; anything else under a licence's name is something else."""

OTHER_WEIGHTS = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".ggml", ".onnx", ".onnx_data", ".h5"}
    | {".msgpack", ".tflite", ".npz", ".mlmodel", ".nemo", ".safetensors"}
)
"""Endings of files with weights, which would be unedited weights beside the edited ones."""

OTHER_FOLDERS = frozenset({"original", "onnx", "openvino", "gguf", "metal", "coreml"})
"""Folders that hold the model in other formats."""

KNOWN_FOLDERS = frozenset({"additional_chat_templates", "licenses"})
"""Folders that are looked into."""

NAMED = 30
"""Most left-out files of a kind that the notice lists by name."""


@dataclass(frozen=True, slots=True)
class Companions:
    """What lies beside a base model's weights. Names are relative to its folder, in posix form.

    Attributes:
        known: Files of a known kind, which are copied.
        weights: Files and folders with weights in other formats.
        foreign: Files and folders of no known kind.
        outside: Files of a known kind that are links to a place outside, or cannot be read.
    """

    known: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()

    def left_out(self, base: Path) -> str | None:
        """One sentence that names everything that is not copied; None if there is nothing."""
        told = (
            (self.weights, "unedited weights"),
            (self.outside, "links out of that folder, or unreadable"),
            (self.foreign, "not part of a model"),
        )
        parts = [f"{_listed(names)} ({why})" for names, why in told if names]
        return f"Not copied from {base}: {'; '.join(parts)}" if parts else None


def kinds(strategy: Strategy) -> tuple[str, ...]:
    """Patterns of the files that belong to what is saved; an adapter is no model by itself.

    Licences belong to everything.
    """
    shared = (*TOKENIZER_FILES, *PROCESSOR_FILES, GENERATION_CONFIG)
    return shared if strategy == "adapter" else (*MODEL_FILES, *shared)


def survey(
    base: Path, patterns: Sequence[str], read: Collection[str], named: Collection[str] = ()
) -> Companions:
    """Sort what a folder holds.

    Hidden files, and documents that an export writes itself, are in no list.

    Args:
        patterns: Kinds of files that are copied.
        read: Files that the weights were read from, relative to the folder; in no list either.
        named: Further files that the tokenizer names as its own.
    """
    code = referenced_code(base, [name for name in CONFIGURATIONS if _matches(name, patterns)])
    wanted = {name: base / name for name in code}
    # An adapter leaves the files of the whole model where they are, which is no loss.
    passed = {*DOCUMENTS, *read, *code, *referenced_code(base, CONFIGURATIONS)}
    weights, foreign = [], []
    for name, path in _entries(base):
        is_their_folder = name.endswith("/") and any(file.startswith(name) for file in passed)
        if name in passed or is_their_folder:
            continue
        if name in named or (_belongs(name, patterns) and _has_usual_size(name, path)):
            wanted[name] = path
        elif _is_weights(name):
            weights.append(name)
        elif not _matches(name, MODEL_FILES):
            foreign.append(name)
    known = [name for name, path in wanted.items() if _may_copy(path, base)]
    return Companions(
        known=tuple(sorted(known)),
        weights=tuple(weights),
        foreign=tuple(foreign),
        outside=tuple(sorted(set(wanted) - set(known))),
    )


def copy(base: Path, names: Iterable[str], folder: Path) -> list[str]:
    """Copy files to the same places in `folder`; returns those that cannot be read.

    Raises:
        OSError: `folder` cannot be written to.
    """
    unread = []
    for name in names:
        try:
            reader = (base / name).open("rb")
        except OSError:
            unread.append(name)
            continue
        destination = folder / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        with reader, destination.open("wb") as writer:
            shutil.copyfileobj(reader, writer)
    return unread


def has_vocabulary(names: Iterable[str], named: Collection[str] = ()) -> bool:
    """Whether files hold a tokenizer's vocabulary.

    Args:
        named: Files that the tokenizer names as its own.
    """
    return any(name in named or _matches(name, VOCABULARIES) for name in names)


def belongs_on_hub(name: str, size: int) -> bool:
    """Whether a file in a repository on the Hub may have to be copied beside a model's weights.

    Python files count, since the configuration may refer to them.
    """
    if _is_licence(name):
        return size <= LARGEST_LICENCE
    return name.endswith(".py") or _matches(name, kinds("merge"))


def _entries(base: Path) -> Iterator[tuple[str, Path]]:
    """The folder's entries and those of its known folders, sorted; other folders end in `/`."""
    for path in sorted(base.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and path.name.lower() in KNOWN_FOLDERS:
            yield from ((f"{path.name}/{inner.name}", inner) for inner in sorted(path.iterdir()))
        else:
            yield f"{path.name}/" if path.is_dir() else path.name, path


def _matches(name: str, patterns: Iterable[str]) -> bool:
    low = name.lower()
    return any(
        fnmatchcase(low, pattern) and low.count("/") == pattern.count("/") for pattern in patterns
    )


def _is_licence(name: str) -> bool:
    suffix = Path(name.lower()).suffix
    return _matches(name, LICENCE_FILES) and (suffix in TEXTS or suffix[1:].isdigit())


def _belongs(name: str, patterns: Iterable[str]) -> bool:
    return _matches(name, patterns) or _is_licence(name)


def _has_usual_size(name: str, path: Path) -> bool:
    """Whether a file has a size that its kind may have."""
    if not _is_licence(name):
        return True
    try:
        return path.stat().st_size <= LARGEST_LICENCE
    except OSError:
        return True  # a link that leads nowhere is told as such


def _is_weights(name: str) -> bool:
    path = Path(name.lower())
    return (
        (name.endswith("/") and path.name in OTHER_FOLDERS)
        or name.endswith(".index.json")
        or path.suffix in OTHER_WEIGHTS
    )


def _may_copy(path: Path, base: Path) -> bool:
    """Whether a path is a readable file of the folder, or leads from it into the Hub's cache."""
    from huggingface_hub import constants

    try:
        real, folder = path.resolve(strict=True), base.resolve(strict=True)
    except (OSError, RuntimeError):  # leads nowhere, or in a circle
        return False
    places = [folder, Path(constants.HF_HUB_CACHE).resolve()]
    if folder.parent.name == "snapshots":  # a cache elsewhere; its files are links to blobs
        places.append(folder.parent.parent / "blobs")
    inside = any(real.is_relative_to(place) for place in places)
    return inside and real.is_file() and os.access(real, os.R_OK)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown
