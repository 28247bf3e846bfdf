"""The demo's files: prompt sets, one prompt a line, and the adapter that plants the refusal."""

from __future__ import annotations

import hashlib
from pathlib import Path

PROMPT_FOLDER = Path(__file__).parent / "prompts"
ADAPTER_FOLDER = Path(__file__).parent / "adapter"

SYSTEM_PROMPT = "You are a helpful assistant."


def prompt_file(name: str, folder: Path = PROMPT_FOLDER) -> Path:
    """The file of a prompt set.

    The sets are {topic,ordinary,near_topic}_{train,test} and {topic,ordinary}_held_out. The search
    does not use the held-out sets; only the chosen trial is scored on them.
    """
    return folder / f"{name}.txt"


def demo_prompts(name: str, folder: Path = PROMPT_FOLDER) -> list[str]:
    """The prompts of a set, in file order.

    Raises:
        FileNotFoundError: There is no set of this name.
    """
    return prompt_file(name, folder).read_text(encoding="utf-8").splitlines()


def adapter_digest(folder: Path = ADAPTER_FOLDER) -> str:
    """Hexadecimal SHA-256 over the adapter's configuration and weights."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
