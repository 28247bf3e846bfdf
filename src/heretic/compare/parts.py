"""What tensors that only one of two checkpoints has belong to, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from heretic.compare.difference import Names, layer_of
from heretic.compare.side import Side
from heretic.compare.tensors import same_bytes
from heretic.errors import ModelError
from heretic.system.display import counted
from heretic.system.documents import read_json

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "embed_in.weight", "tok_embeddings.weight",
    "word_embeddings.weight", "shared.weight",
)  # fmt: skip
PATTERNS = (
    ("multi-token prediction", r"(^|\.)(mtp|nextn|eh_proj|enorm|hnorm|shared_head)"),
    ("vision", r"vision|visual|image|multi_modal|mm_projector|patch_embed"),
    ("audio", r"audio|speech|whisper"),
    ("tables of positions", r"inv_freq|position_ids|\.masked_bias$|\.attn\.bias$|rotary"),
)
"""Names of parts, and what their tensors' names contain."""

COMPUTED = "tables of positions"
"""The part that models compute: nothing is lost with it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors that only one of two checkpoints has, by what they belong to.

    Attributes:
        lost: Whether the original has them; otherwise the judged model.
        what: The part of the model.
        names: The tensors.
        harmless: Why the two models compute the same without them; empty if they do not.
    """

    lost: bool
    what: str
    names: tuple[str, ...]
    harmless: str = ""

    def sentence(self) -> str:
        """What is lost or added, in words."""
        count = counted(len(self.names), "tensor")
        shown = f"{self.names[0]}{', ...' if len(self.names) > 1 else ''}"
        text = f"{'Lost' if self.lost else 'Added'}: {self.what} ({count}: {shown})"
        return f"{text}; {self.harmless}" if self.harmless else text

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; see docs/compare.md."""
        return {
            "lost": self.lost,
            "part": self.what,
            "tensors": list(self.names),
            "harmless": self.harmless,
        }


def parts(judged: Side, original: Side, names: Names) -> list[Part]:
    """Sort the tensors that only one side has by what they belong to."""
    found = []
    for lost, only, owner, other in (
        (True, names.lost, original, judged),
        (False, names.added, judged, original),
    ):
        config = text_config(owner)
        groups: dict[str, list[str]] = {}
        for name in only:
            groups.setdefault(_what(name, config), []).append(name)
        for what, members in groups.items():
            harmless = _harmless(what, members, lost, owner, other)
            found.append(Part(lost, what, tuple(members), harmless))
    return found


def _what(name: str, config: dict[str, Any]) -> str:
    if name.endswith(HEADS):
        return "output head"
    layers, layer = config.get("num_hidden_layers"), layer_of(name)
    if isinstance(layers, int) and layer is not None and ".layers." in f".{name}":
        if layer >= layers and not re.search(r"vision|visual|audio", name):
            return "multi-token prediction"
        shared = config.get("num_kv_shared_layers")
        reads = re.search(r"\.(k_proj|v_proj|k_norm|v_norm)\.", name)
        if isinstance(shared, int) and shared and layer >= layers - shared and reads:
            return "keys and values of layers that share those of another"
    return next(
        (what for what, pattern in PATTERNS if re.search(pattern, name, re.IGNORECASE)),
        "other tensors",
    )


def _harmless(what: str, names: list[str], lost: bool, owner: Side, other: Side) -> str:
    if what == COMPUTED:
        return "models compute them"
    if what.startswith("keys and values"):
        return "those layers do not read them"
    if what != "output head":
        return ""
    head = names[0]
    embedding = find(owner, EMBEDDINGS)
    tensors = owner.checkpoint.tensors
    equal = embedding is not None and same_bytes(tensors[head], tensors[embedding])
    if lost and is_tied(other) and (equal or embedding is None):
        return "the head is tied to the embedding"
    if not lost and is_tied(other) and equal:
        return "it equals the embedding, to which the original ties it"
    return ""


def find(side: Side, endings: Iterable[str]) -> str | None:
    """The first tensor whose name has one of these endings."""
    return next((name for name in side.checkpoint.tensors if name.endswith(tuple(endings))), None)


def is_tied(side: Side) -> bool:
    """Whether the configuration ties the output head to the embedding."""
    tied = text_config(side).get("tie_word_embeddings")
    if tied is None:
        tied = _config(side).get("tie_word_embeddings")
    return bool(True if tied is None else tied)


def text_config(side: Side) -> dict[str, Any]:
    """The configuration of the language model inside a model."""
    config = _config(side)
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _config(side: Side) -> dict[str, Any]:
    path = side.checkpoint.folder / "config.json"
    if not path.is_file():
        return {}
    content = read_json(path, kind=ModelError, strict=False)
    return content if isinstance(content, dict) else {}
