"""Where the demo's own files lie: prompts, one a line, and the adapter that plants the refusal."""

from __future__ import annotations

import hashlib
from pathlib import Path

PROMPT_FOLDER = Path(__file__).parent / "prompts"
ADAPTER_FOLDER = Path(__file__).parent / "adapter"

SYSTEM_PROMPT = "You are a helpful assistant."


def prompt_file(name: str, folder: Path = PROMPT_FOLDER) -> Path:
    """The file of a prompt set.

    The sets are {topic,ordinary,near_topic}_{train,test} and {topic,ordinary}_held_out. No search
    sees the held-out ones: they judge what it found.
    """
    return folder / f"{name}.txt"


def demo_prompts(name: str, folder: Path = PROMPT_FOLDER) -> list[str]:
    """The prompts of a set, in file order. Raises FileNotFoundError for an unknown name."""
    return prompt_file(name, folder).read_text(encoding="utf-8").splitlines()


def adapter_digest(folder: Path = ADAPTER_FOLDER) -> str:
    """Hexadecimal sha256 over the adapter's configuration and weights."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
