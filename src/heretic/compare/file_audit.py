"""Whether the files of an export are whole, listed, and the base's where they should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from heretic.compare.files import IGNORED
from heretic.compare.findings import Finding, shortened
from heretic.compare.side import Side
from heretic.errors import HereticError
from heretic.export import companions
from heretic.export.code_files import read_table
from heretic.export.companions import CONFIG, TOKENIZER_FILES, Companions
from heretic.export.documents.reproduction import Reproduction
from heretic.export.files import (
    DOCUMENTS,
    PARAMETERS,
    REPRODUCTION,
    SUMS,
    is_weight_file,
    relative_files,
    sha256_file,
)
from heretic.export.request import Strategy
from heretic.export.safetensors.checkpoint import INDEX, read_header
from heretic.system.adapters import find_adapter

WRITTEN_ANEW = frozenset({"architectures", "quantization_config", *IGNORED[CONFIG]})
"""Keys of config.json that weights saved from memory may change."""


def digest_findings(folder: Path, recorded: Reproduction, *, weights: bool) -> list[Finding]:
    """Compare the files with the digests of the reproduction file and of SHA256SUMS.

    Args:
        weights: Whether weight files are hashed as well.
    """
    findings = []
    present = set(relative_files(folder))
    for name, entry in recorded.files.items():
        if name not in present:
            findings.append(Finding("files", f"{name} is missing."))
        elif (folder / name).stat().st_size != entry.get("size"):
            findings.append(Finding("files", f"{name} has not the size that it was saved with."))
        elif (weights or not is_weight_file(name)) and (
            sha256_file(folder / name) != entry.get("sha256")
        ):
            findings.append(Finding("files", f"{name} is not the file that was saved."))
    findings += [
        Finding("files", f"{name} is not among the files in {REPRODUCTION}.")
        for name in sorted(present - set(recorded.files) - DOCUMENTS)
    ]
    if PARAMETERS not in present:
        findings.append(Finding("files", f"{PARAMETERS} is missing."))
    return [*findings, *_sums_findings(folder, recorded)]


def _sums_findings(folder: Path, recorded: Reproduction) -> Iterator[Finding]:
    """Check what SHA256SUMS says of documents, and that it lists all other files."""
    if not (folder / SUMS).is_file():
        yield Finding("files", f"{SUMS} is missing.")
        return
    listed = {}
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.removeprefix("\\").partition("  ")
        listed[name.replace("\\n", "\n").replace("\\\\", "\\")] = digest
    for name in sorted(set(recorded.files) - listed.keys()):
        yield Finding("files", f"{SUMS} does not list {name}.")
    for name in sorted(DOCUMENTS & listed.keys()):
        path = folder / name
        if path.is_file() and sha256_file(path) != listed[name]:
            yield Finding("files", f"{name} is not the file that {SUMS} lists.")


def index_findings(folder: Path) -> list[Finding]:
    """Check that the index of several weight files names each tensor, in the file that holds it."""
    path = folder / INDEX
    if not path.is_file():
        return []
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        held = {
            entry.key: file.name
            for file in sorted(folder.glob("*.safetensors"))
            for entry in read_header(file)
        }
    except (HereticError, OSError, ValueError, KeyError, TypeError) as error:
        return [Finding("files", f"{INDEX} or a file that it names cannot be read: {error}.")]
    findings = []
    for what, wrong in (
        ("names tensors that no file holds", set(names) - held.keys()),
        ("lacks tensors", held.keys() - set(names)),
        ("names the wrong file for", {n for n in names if n in held and names[n] != held[n]}),
    ):
        if wrong:
            findings.append(Finding("files", f"{INDEX} {what}: {shortened(sorted(wrong))}."))
    return findings


def companion_findings(folder: Path, base: Side, strategy: Strategy) -> list[Finding]:
    """Check that the base's tokenizer, template, configurations and licences were carried over."""
    place = base.checkpoint.folder
    own = find_adapter(base.name) if base.base is not None else None
    replaced = set()
    if own is not None:  # its tokenizer, if it has one, stands in place of the base's
        patterns = TOKENIZER_FILES
        replaced = {path.name for path in base.folder.iterdir() if _is_any(path.name, patterns)}
    findings = []
    for name in _known(place, strategy, base).known:
        if not (folder / name).is_file():
            if not replaced or not _is_any(name, TOKENIZER_FILES):
                findings.append(Finding("companions", f"{name} of the base was lost."))
        elif replaced and _is_any(name, TOKENIZER_FILES):
            continue
        elif (folder / name).read_bytes() != (place / name).read_bytes():
            findings += _changed(folder, place, name)
    return findings


def _known(place: Path, strategy: Strategy, base: Side) -> Companions:
    index = set() if base.checkpoint.index is None else {INDEX}
    read = {file.relative_to(place).as_posix() for file in base.checkpoint.files} | index
    return companions.survey(place, companions.kinds(strategy), read)


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(Path(name.lower()).match(pattern) for pattern in patterns)


def _changed(folder: Path, place: Path, name: str) -> list[Finding]:
    if name != CONFIG:
        return [Finding("companions", f"{name} is not the base's.")]
    ours, theirs = read_table(folder / CONFIG), read_table(place / CONFIG)
    keys = sorted(
        key
        for key in ours.keys() & theirs.keys() - WRITTEN_ANEW
        if ours[key] != theirs[key] and not isinstance(theirs[key], dict)
    )
    return [Finding("companions", f"{CONFIG} differs in {shortened(keys)}.")] if keys else []
