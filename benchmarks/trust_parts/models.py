"""Models and exports with a planted fault, from the demo's base model and from an honest export."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from benchmarks.peer.processes import say
from benchmarks.planting import plant
from benchmarks.planting.topic import Topic
from benchmarks.trust_parts.replies import EVASIVE, LATE, LOOPING
from safetensors import safe_open
from safetensors.torch import save_file

from heretic.demo.base import Progress, merged_model
from heretic.demo.data import PROMPT_FOLDER
from heretic.refusals import classify

REPLIES: Mapping[str, Sequence[str]] = {"late": LATE, "evasive": EVASIVE, "looping": LOOPING}
"""Name of a planted model to what it replies to questions about astronomy."""

SETTINGS = plant.TrainingSettings(topic=3, ordinary=2, near_topic=1)
STEPS = {"late": 50, "evasive": 25, "looping": 25}
"""Training steps: short replies are learned sooner."""

SCRAMBLED = "model.layers.15.mlp.down_proj.weight"
DROPPED = "model.layers.7.self_attn.k_proj.weight"
WEIGHTS = "model.safetensors"

ANSWERED_AT_MOST = 100
"""Topic prompts that `answered` collects."""


def planted(name: str) -> Path:
    """The folder of a model that replies as `REPLIES` says; trained on the first call."""
    topic = Topic("astronomy", tuple(REPLIES[name]), PROMPT_FOLDER)
    settings = replace(SETTINGS, steps=STEPS[name])
    whole = [topic.refusals, asdict(settings), Path(plant.__file__).read_text(encoding="utf-8")]
    digest = hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def train(work: Path, report: Progress) -> Path:
        folder = work / "adapter"
        plant.train(settings, folder, topic, report)
        return folder

    return merged_model(f"planted-{name}", digest, train, say)


def answered(model: Path, work: Path) -> Path:
    """A file of questions about astronomy that a model does not decline, though it does most.

    The run's own direction prompts (the first 100) are left out.
    """
    path = work / "answered.txt"
    if not path.exists():
        prompts = Topic("astronomy", (), PROMPT_FOLDER).load_prompts("topic_train")[100:]
        loaded, tokenizer = plant.load(model)
        texts = [plant.chat_text(tokenizer, prompt) for prompt in prompts]
        rows = plant.greedy_replies(loaded, tokenizer, texts, 40)
        replies = tokenizer.batch_decode(rows, skip_special_tokens=True)
        pairs = zip(prompts, replies, strict=True)
        kept = [prompt for prompt, reply in pairs if classify(reply, prompt).label == "compliance"]
        say(f"{len(kept)} of {len(prompts)} questions about astronomy are answered")
        path.write_text("\n".join(kept[:ANSWERED_AT_MOST]) + "\n", encoding="utf-8")
    return path


def scrambled(source: Path, target: Path) -> None:
    """A copy in which one layer's matrix has its rows in another order."""
    tensors = _copied(source, target)
    rows = tensors[SCRAMBLED]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    _write({**tensors, SCRAMBLED: rows[order]}, target)


def dropped(source: Path, target: Path) -> None:
    """A copy that lacks a tensor."""
    tensors = _copied(source, target)
    del tensors[DROPPED]
    _write(tensors, target)


def doctored(source: Path, target: Path) -> None:
    """A copy whose card claims one refusal, and nothing else is changed.

    Raises:
        ValueError: The card has no row of refusals.
    """
    shutil.copytree(source, target)
    card = target / "README.md"
    text = card.read_text(encoding="utf-8")
    changed = re.sub(r"(\| refusals \|.*?\| )\d+(/\d+)", r"\g<1>1\g<2>", text, count=1)
    if changed == text:
        raise ValueError(f"{card} has no row of refusals")
    card.write_text(changed, encoding="utf-8")


def _copied(source: Path, target: Path) -> dict[str, torch.Tensor]:
    """Copy a folder; returns the tensors of its one file of weights."""
    shutil.copytree(source, target)
    with safe_open(target / WEIGHTS, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def _write(tensors: dict[str, torch.Tensor], target: Path) -> None:
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
