"""The documents beside GGUF files: the model card with what was measured, and results as JSON."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from heretic.errors import ExportError
from heretic.export.companions import LARGEST_LICENCE, LICENCE_FILES, TEXTS
from heretic.export.documents.base_card import front_matter, split_front_matter
from heretic.export.documents.markdown import table
from heretic.export.files import (
    CARD,
    DOCUMENTS,
    PARAMETERS,
    REPRODUCTION,
    SUMS,
    read_json,
    relative_files,
    sha256_file,
    sums_text,
    write_json,
    write_text,
)
from heretic.gguf.modelfile import MODELFILE
from heretic.gguf.results import RESULTS, Made, Results, fallback_text
from heretic.records.trial import words_of
from heretic.system.display import bytes_text, safe

OF_TRANSFORMERS = "How to use it"
"""Section of a card that holds for the folder in safetensors only."""

HEADING = "GGUF files"


def write_documents(folder: Path, source: Path, results: Results) -> None:
    """Write card, results and digests beside the GGUF files, and what the source says of itself.

    Args:
        folder: Holds the GGUF files.
        source: The model's folder, from which licences and the reproduction file are copied.

    Raises:
        ExportError: A file cannot be written.
    """
    for path in sorted(source.iterdir()):
        if path.is_file() and (path.name in (PARAMETERS, REPRODUCTION) or _is_licence(path)):
            shutil.copyfile(path, folder / path.name)
    write_json(folder / RESULTS, results.to_dict())
    card = source / CARD
    try:
        old = card.read_text(encoding="utf-8") if card.is_file() else ""
    except (OSError, ValueError):
        old = ""
    write_text(folder / CARD, card_text(old, results))
    write_digests(folder)


def write_digests(folder: Path) -> None:
    """Write the digests of all files; to be done again after any file is added."""
    (folder / SUMS).unlink(missing_ok=True)
    digests = {name: sha256_file(folder / name) for name in relative_files(folder)}
    write_text(folder / SUMS, sums_text(digests))


def holds_only_ours(folder: Path) -> bool:
    """Whether a folder holds GGUF files that Heretic made, and nothing else."""
    try:
        data = read_json(folder / RESULTS)
        made = {str(row["file"]) for row in data["files"]} | set(data["originals"])
    except (ExportError, KeyError, TypeError):
        return False
    known = made | DOCUMENTS | {RESULTS, MODELFILE}
    return all(name in known or _is_licence(folder / name) for name in relative_files(folder))


def card_text(old: str, results: Results) -> str:
    """The card of the GGUF files.

    Args:
        old: The card of the model's folder; empty if it has none.
    """
    head, body = split_front_matter(old)
    metadata = _metadata(front_matter(head))
    if not body.strip():
        body = f"\n# {results.name}\n"
    sections = re.split(r"(?m)^(?=## )", body)
    kept = [part for part in sections if not part.startswith(f"## {OF_TRANSFORMERS}")]
    kept.insert(1, f"{section(results)}\n")
    return safe(f"---\n{metadata}---\n{''.join(kept)}")


def section(results: Results) -> str:
    """The section on GGUF files, in Markdown."""
    rows = [_row(made) for made in results.files]
    names = [score.name for score in results.unquantised.scores]
    heading = ["file", "type", "size", *map(words_of, names)]
    unquantised = results.unquantised
    if unquantised.kind not in {made.kind for made in results.files}:
        rows.insert(0, ["(not quantised)", unquantised.kind, "", *_figures(unquantised)])
    lines = [f"## {HEADING}\n", table(heading, rows)]
    lines.append(
        "Each file was loaded in llama.cpp and scored there, with replies of up to "
        f"{results.tokens} new tokens. {divergence_text(results)}\n"
    )
    lines += [f"**{text}**\n" for text in results.survival()]
    lines += [f"- {text}" for text in remarks(results)]
    return "\n".join(lines) + "\n" + _use(results)


def _use(results: Results) -> str:
    """How other programs run the smallest file."""
    file = results.smallest.file
    name = results.name.lower()
    rows = [
        ["llama.cpp", f"`llama-cli -m {file}`"],
        ["Ollama", f"`ollama create {name} -f {MODELFILE}`, then `ollama run {name}`"],
        ["LM Studio", f"`lms import {file}`"],
    ]
    if results.is_adapter:
        rows = [["llama.cpp", f"`llama-cli -m BASE.gguf --lora {file}`"]]
    return (
        f"\n### Run it\n\n{table(['program', 'command'], rows)}\n"
        "The files were loaded by llama.cpp's library. The programs themselves were not tried.\n"
    )


def divergence_text(results: Results) -> str:
    """What the KL divergence is measured from, in a sentence."""
    if results.original is not None:
        return (
            f"KL divergence is that of the first token from the original, {results.original}, in "
            "the same type of file."
        )
    return (
        "There was no original to compare with: KL divergence is that of the first token from the "
        "same edited model before it was quantised."
    )


def remarks(results: Results) -> list[str]:
    """What else there is to say of the files, in sentences."""
    found = []
    used = [made.kind for made in results.files if made.importance]
    if used:
        found.append(
            f"{' and '.join(used)}: quantised with an importance matrix, the mean square of each "
            "linear map's input on the good prompts."
        )
    for made in results.files:
        if made.fallbacks:
            found.append(
                f"{made.kind}: matrices whose rows are no multiple of the type's block have other "
                f"types: {fallback_text(made)}."
            )
        if made.importance and made.without_importance:
            found.append(
                f"{made.kind}: {len(made.without_importance)} matrices were quantised without "
                f"importance, such as {made.without_importance[0]}."
            )
    if results.not_scored:
        found.append(f"Not scored in llama.cpp: {', '.join(results.not_scored)}.")
    return found


def _row(made: Made) -> list[str]:
    return [f"`{made.file}`", made.kind, bytes_text(made.size), *_figures(made)]


def _figures(made: Made) -> list[str]:
    return [score.with_interval() for score in made.scores]


def _metadata(old: Mapping[str, Any]) -> str:
    """The YAML head: that of the model's card, as a quantised model for llama.cpp."""
    import yaml  # type: ignore[import-untyped]

    tags = [tag for tag in old.get("tags", ()) if tag not in ("lora", "gguf")]
    data = {**old, "library_name": "gguf", "tags": [*tags, "gguf"]}
    data.setdefault("pipeline_tag", "text-generation")
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text


def _is_licence(path: Path) -> bool:
    name = path.name.lower()
    return (
        any(fnmatchcase(name, pattern) for pattern in LICENCE_FILES)
        and path.suffix.lower() in TEXTS
        and path.is_file()
        and path.stat().st_size <= LARGEST_LICENCE
    )
