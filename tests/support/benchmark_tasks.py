"""Tasks of the lm-evaluation-harness that need no network: YAML files beside their JSON data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
description: "Choose well."
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
REPLY = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
output_type: generate_until
test_split: test
doc_to_text: question
doc_to_target: reply
generation_kwargs:
  until: ["<|im_end|>"]
  max_gen_toks: {tokens}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
GROUP = """\
group: {name}
task:
{members}
aggregate_metric_list:
  - metric: acc
    aggregation: mean
    weight_by_size: {by_size}
metadata:
  version: 1.0
"""
WORDS = ("red", "green", "blue", "old", "new", "small", "large", "round")


def choice_task(folder: Path, name: str, n: int = 12) -> str:
    """Write a task of `n` questions with four given answers; returns its name."""
    rows = [
        {
            "question": f"Which word is number {index}?",
            "choices": [WORDS[(index + shift) % len(WORDS)] for shift in range(4)],
            "answer": index % 4,
        }
        for index in range(n)
    ]
    return _write(folder, name, CHOICE, rows)


def reply_task(
    folder: Path, name: str, questions: Sequence[str], replies: Sequence[str], tokens: int
) -> str:
    """Write a task whose right replies are given; returns its name."""
    pairs = zip(questions, replies, strict=True)
    rows = [{"question": question, "reply": reply} for question, reply in pairs]
    return _write(folder, name, REPLY, rows, tokens=tokens)


def group(folder: Path, name: str, members: Sequence[str], *, by_size: bool) -> str:
    """Write a group of tasks; returns its name."""
    listed = "\n".join(f"  - {member}" for member in members)
    text = GROUP.format(name=name, members=listed, by_size=str(by_size).lower())
    (folder / f"{name}.yaml").write_text(text)
    return name


def _write(
    folder: Path, name: str, template: str, rows: Sequence[dict[str, Any]], **more: object
) -> str:
    data = folder / f"{name}.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache = folder.parent / "cache"
    text = template.format(name=name, data=data, cache=cache, **more)
    (folder / f"{name}.yaml").write_text(text)
    return name
