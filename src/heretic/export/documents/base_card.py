"""The metadata of the base model's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heretic.system.hub import base_folder, download_card, is_local, repository_of

CARRIED_OVER = ("license", "license_name", "license_link", "language", "library_name")
"""Fields of the base card's metadata that are valid for the edited model too."""


def base_metadata(model: str, revision: str | None = None) -> dict[str, Any]:
    """The fields carried over from the base model's card; empty if no card is found.

    Looks into the model's folder or the Hub cache, then asks the Hub unless offline. Nothing is
    guessed: from a card without a licence no licence is taken.
    """
    text = _card_text(model, revision)
    return {} if text is None else carried_over(front_matter(text), model)


def front_matter(card: str) -> dict[str, Any]:
    """The YAML head of a model card; empty if there is none or it cannot be parsed."""
    import yaml  # type: ignore[import-untyped]

    head, _ = split_front_matter(card)
    if not head:
        return {}
    try:
        data = yaml.safe_load("\n".join(head.splitlines()[1:-1]))
    except (yaml.YAMLError, ValueError, RecursionError):  # dates, integers, nesting without end
        return {}
    return dict(data) if isinstance(data, Mapping) else {}


def split_front_matter(card: str) -> tuple[str, str]:
    """The YAML head of a model card with its rules, and the rest; the head is empty without one."""
    lines = card.lstrip("\ufeff").splitlines(keepends=True)
    if not lines or lines[0].rstrip() != "---":
        return "", card
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    if end is None:
        return "", card
    return "".join(lines[: end + 1]), "".join(lines[end + 1 :])


def carried_over(metadata: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The fields of the base's metadata that are valid for the edited model too.

    A licence link relative to the base's repository becomes a full one.
    """
    kept = {name: metadata[name] for name in CARRIED_OVER if metadata.get(name)}
    link = kept.get("license_link")
    if isinstance(link, str) and "://" not in link and not is_local(model):
        page = f"https://huggingface.co/{repository_of(model)}"
        kept["license_link"] = f"{page}/blob/main/{link.lstrip('./')}"
    return kept


def _card_text(model: str, revision: str | None) -> str | None:
    folder = base_folder(model, revision)
    if folder is not None and (folder / "README.md").is_file():
        try:
            return (folder / "README.md").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None
    return None if is_local(model) else download_card(model, revision)
