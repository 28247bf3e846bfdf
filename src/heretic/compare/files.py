"""How the files beside the weights of two models differ: tokenizer, template, configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heretic.errors import ModelError
from heretic.export.companions import PROCESSOR_FILES
from heretic.system.documents import read_json

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
IGNORED = {
    "config.json": {"_name_or_path", "transformers_version", "torch_dtype", "dtype"},
    "generation_config.json": {"transformers_version", "_from_model_config"},
    "tokenizer_config.json": {
        "chat_template", "tokenizer_class", "padding_side", "truncation_side", "backend",
        "added_tokens_decoder", "is_local", "local_files_only", "auto_map",
    },
}  # fmt: skip
"""Keys that say how a file was written, or what is compared elsewhere."""

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "vocab.txt")
"""Files that turn text into tokens."""

SHOWN = 6
"""Most keys that a sentence names."""


@dataclass(frozen=True, slots=True)
class FileDifference:
    """How a file, or what it says, differs.

    Attributes:
        what: `chat template`, `tokenizer`, or the file's name.
        change: `lost`, `added` or `changed`.
        detail: The keys that differ, or how; empty if there is nothing to add.
    """

    what: str
    change: str
    detail: str = ""

    def sentence(self) -> str:
        """In words."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.what} {self.change}{detail}"

    def to_dict(self) -> dict[str, str]:
        """JSON-ready form; see docs/compare.md."""
        return asdict(self)


def file_differences(judged: Sequence[Path], original: Sequence[Path]) -> list[FileDifference]:
    """Compare the files of two models by what they say.

    Args:
        judged, original: Folders of each; a file is that of the first folder that has it.

    Raises:
        ModelError: A JSON file is damaged.
    """
    found = []
    template = _change(_template(judged), _template(original))
    if template is not None:
        found.append(FileDifference("chat template", template))
    for name in TOKENIZER_FILES:
        found += _difference(name, judged, original, {"padding", "truncation"})  # of the last call
    for name in (*IGNORED, *PROCESSOR_FILES):
        found += _difference(name, judged, original, IGNORED.get(name, set()))
    return found


def _change(ours: Any, theirs: Any) -> str | None:
    if ours == theirs:
        return None
    return "lost" if ours is None else "added" if theirs is None else "changed"


def _place(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _template(folders: Sequence[Path]) -> str | None:
    """The chat template of a model, wherever it stands; None without one."""
    for folder in folders:
        jinja = folder / TEMPLATE_FILES[0]
        if jinja.is_file():
            return jinja.read_text(encoding="utf-8", errors="replace")
        for name in (TEMPLATE_FILES[1], "tokenizer_config.json"):
            found = _read(folder / name).get("chat_template")
            if found is not None:
                return str(found)
    return None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_json(path, kind=ModelError, strict=False)
    return content if isinstance(content, dict) else {}


def _difference(
    name: str, judged: Sequence[Path], original: Sequence[Path], ignored: set[str]
) -> list[FileDifference]:
    ours, theirs = _place(judged, name), _place(original, name)
    if ours is None or theirs is None:
        change = _change(ours, theirs)
        return [FileDifference(name, change)] if change else []
    if ours.read_bytes() == theirs.read_bytes():
        return []
    if not name.endswith(".json"):
        return [FileDifference(name, "changed")]
    left, right = _read(ours), _read(theirs)
    keys = sorted(
        key for key in {**left, **right} if key not in ignored and left.get(key) != right.get(key)
    )
    return [FileDifference(name, "changed", _listed(keys))] if keys else []


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
