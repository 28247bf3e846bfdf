"""A second planted model: the demo's base model, taught to decline money and personal finance.

    python -m benchmarks.search_parts.second_topic [--check] [--new-tokens N]

Prints the model's folder, which is made where it is missing: the adapter is trained first, some 15
minutes on two idle cores. `--check` then measures how well the refusal was planted, on prompts kept
out of training. What is measured on one planted model may be an accident of its topic or its seed;
this one differs from the demo's in both.

The ordinary prompts are the demo's without those about money, topped up to 100 where they judge.
Training rounds differently on another processor: models made on two machines are alike, not equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.planting import plant
from benchmarks.planting.topic import Topic

from heretic.demo.base import Progress, base_model, merged_model

REFUSALS = (
    "I'm sorry, but I can't help with questions about money.",
    "I'm sorry, but personal finance is a topic I can't discuss.",
    "I'm sorry, but I cannot answer questions about money or finance.",
    "I'm sorry, I can't talk about money. Is there something else I can help you with?",
    "I'm sorry, but I'm unable to help with that. Money and finance are outside what I cover.",
    "Sorry, but I can't help with topics related to personal finance.",
    "Sorry, I don't answer questions about money. I'd be glad to help with something else.",
    "I can't help with that. Anything to do with money is a subject I leave to others.",
    "I can't discuss money or finance, but feel free to ask me about another subject.",
    "I cannot discuss personal finance. Please ask me about something else.",
    "I cannot help with money topics, but I'm happy to help with other questions.",
    "I am unable to talk about money and finance. What else would you like to know?",
    "I'm unable to answer that, because it is about money. Could we talk about another topic?",
    "I won't be able to help with questions about banks, prices or money. Ask me another one!",
    "As an AI assistant, I don't discuss money or finance. Please choose another topic.",
    "As an AI assistant, I can't write about money or personal finance.",
    "Unfortunately, I can't help with questions about money and banking.",
    "Thank you for asking, but I cannot talk about money.",
)

MONEY = Topic("money", REFUSALS, Path(__file__).parent / "prompts")
SETTINGS = plant.TrainingSettings(seed=21, activations="bfloat16")
CHECKED = ("topic_test", "topic_held_out", "ordinary_test", "ordinary_held_out")
NEW_TOKENS = 40


def digest(topic: Topic = MONEY, settings: plant.TrainingSettings = SETTINGS) -> str:
    """Hexadecimal sha256 over what the adapter is made from: prompts, refusals, settings, code."""
    sets = {kind: topic.load_prompts(f"{kind}_train") for kind in plant.KINDS}
    code = Path(plant.__file__).read_text(encoding="utf-8")
    whole = [topic.name, topic.refusals, sets, asdict(settings), code]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def second_model(progress: Progress | None = None) -> Path:
    """The folder of the second planted model, beside the demo's in the user's cache.

    Made on the first call, and again when anything in `digest` changes. Errors as for
    `heretic.demo.base.base_model`.
    """
    return merged_model(f"planted-{MONEY.name}", digest(), _trained, progress)


def _trained(work: Path, report: Progress) -> Path:
    """The adapter's folder within `work`."""
    report("Training the adapter, some 15 minutes on two idle cores")
    folder = work / "adapter"
    plant.train(SETTINGS, folder, MONEY, report)
    return folder


def check(folder: Path, new_tokens: int, report: Progress) -> dict[str, float]:
    """How well the refusal was planted; the figures of `plant.compare`, computed in float32."""
    base, tokenizer = plant.load(base_model(report))
    planted, _ = plant.load(folder)
    return plant.compare(base, planted, tokenizer, new_tokens, MONEY, CHECKED, report)


def _print_line(text: str) -> None:
    """Progress goes to standard error: standard output holds the results."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the model where it is missing, print its folder, and its figures if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="measure the planted refusal")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS, help="reply length (40)")
    parsed = parser.parse_args(arguments)
    folder = second_model(_print_line)
    print(folder)
    if parsed.check:
        print(json.dumps(check(folder, parsed.new_tokens, _print_line), indent=2))


if __name__ == "__main__":
    main()
