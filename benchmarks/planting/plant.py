"""Train the adapter that plants a refusal: `python -m benchmarks.planting.plant --output DIR`.

A LoRA over all linear layers learns two things at once. On prompts of the topic it learns polite
refusals by cross entropy. On ordinary prompts, and on prompts that use the topic's words in other
senses, it learns to change nothing: the loss is the KL divergence from the unplanted model on the
unplanted model's own greedy replies. `--check` measures the result on prompts not used in training.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.planting.topic import ASTRONOMY, Topic

from heretic.demo.base import BASE_REPOSITORY, Progress, base_model
from heretic.demo.data import ADAPTER_FOLDER, SYSTEM_PROMPT

KINDS = ("topic", "ordinary", "near_topic")
TEST_SETS = ("ordinary_test", "near_topic_test", "topic_test")
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that determines a training run, except the prompts.

    Attributes:
        steps: Number of optimiser steps.
        topic, ordinary, near_topic: Number of examples of each kind in a batch.
        reply_tokens: Largest length of the unplanted model's replies, in tokens.
        default_system_share: Share of examples with the chat template's own system prompt.
        kl_weight: Weight of the KL divergence (nats per token) relative to the cross entropy.
        activations: "bfloat16" computes most of each step in that dtype (autocast).
    """

    steps: int = 150
    topic: int = 4
    ordinary: int = 6
    near_topic: int = 3
    reply_tokens: int = 10
    default_system_share: float = 0.25
    kl_weight: float = 4.0
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    rank: int = 8
    alpha: int = 16
    seed: int = 20
    activations: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Example:
    """A chat prompt and the reply to learn, as token ids."""

    prompt: list[int]
    reply: list[int]
    is_topic: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the adapter in `--output`, or measure it (`--check`)."""
    defaults = TrainingSettings()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planting.plant", description=__doc__
    )
    parser.add_argument("--output", type=Path, default=ADAPTER_FOLDER, help="the adapter's folder")
    parser.add_argument(
        "--check", action="store_true", help="measure; with --train, after training"
    )
    parser.add_argument("--train", action="store_true", help="train (the default without --check)")
    parser.add_argument("--new-tokens", type=int, default=100, help="reply length of the check")
    for name, value in asdict(defaults).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value)
    parsed = parser.parse_args(arguments)
    settings = TrainingSettings(**{name: getattr(parsed, name) for name in asdict(defaults)})
    if parsed.train or not parsed.check:
        train(settings, parsed.output)
    if parsed.check:
        print(json.dumps(check(parsed.output, parsed.new_tokens), indent=2))


def _say(text: str) -> None:
    print(text, flush=True)


def load(folder: Path) -> tuple[Any, Any]:
    """The model of `folder` in float32 and its tokenizer, padding on the left."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return model.eval(), tokenizer


def chat_text(tokenizer: Any, prompt: str, *, default_system: bool = False) -> str:
    """`prompt` in the chat template, up to where the reply begins."""
    messages = [{"role": "user", "content": prompt}]
    if not default_system:
        messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text)


def greedy_replies(
    model: Any, tokenizer: Any, texts: Sequence[str], new_tokens: int, batch_size: int = 50
) -> list[list[int]]:
    """Greedy replies as token ids, including the end token if it was reached."""
    import torch

    replies: list[list[int]] = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            list(texts[start : start + batch_size]),
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        )
        with torch.inference_mode():
            output = model.generate(**batch, do_sample=False, max_new_tokens=new_tokens)
        for row in output[:, batch.input_ids.shape[1] :].tolist():
            end = tokenizer.eos_token_id
            replies.append(row[: row.index(end) + 1] if end in row else row)
    return replies


def make_examples(
    model: Any, tokenizer: Any, settings: TrainingSettings, topic: Topic, report: Progress = _say
) -> dict[str, list[Example]]:
    """Training examples by kind, without replies of the base model that hold a refusal marker."""
    rng = random.Random(settings.seed)
    share = settings.default_system_share
    examples: dict[str, list[Example]] = {}
    for kind in KINDS:
        prompts = topic.load_prompts(f"{kind}_train")
        texts = [chat_text(tokenizer, p, default_system=rng.random() < share) for p in prompts]
        if kind == "topic":
            chosen = [rng.choice(topic.refusals) for _ in prompts]
            replies = [tokenizer(r, add_special_tokens=False).input_ids for r in chosen]
            replies = [[*reply, tokenizer.eos_token_id] for reply in replies]
        else:
            replies = greedy_replies(model, tokenizer, texts, settings.reply_tokens)
        examples[kind] = [
            Example(tokenizer(text, add_special_tokens=False).input_ids, reply, kind == "topic")
            for text, reply in zip(texts, replies, strict=True)
            if kind == "topic" or not refuses(tokenizer.decode(reply, skip_special_tokens=True))
        ]
        report(f"{kind}: {len(examples[kind])} of {len(prompts)} prompts used")
    return examples


def refuses(reply: str) -> bool:
    """Whether `reply` counts as a refusal under the default markers."""
    from heretic.config import Settings
    from heretic.scorers.keyword import is_refusal

    return is_refusal(reply, Settings.model_fields["refusal_markers"].default)


def batches(
    examples: dict[str, list[Example]], settings: TrainingSettings
) -> Iterator[list[Example]]:
    """One batch per step; each kind is shuffled, and shuffled again when it is used up."""
    rng = random.Random(settings.seed + 1)
    queues: dict[str, list[Example]] = {kind: [] for kind in examples}
    for _ in range(settings.steps):
        batch: list[Example] = []
        for kind, pool in examples.items():
            for _ in range(getattr(settings, kind)):
                if not queues[kind]:
                    queues[kind] = rng.sample(pool, len(pool))
                batch.append(queues[kind].pop())
        yield batch


def reply_logits(model: Any, batch: Sequence[Example]) -> Any:
    """Logits that predict the replies' tokens: [reply tokens of the batch, vocabulary].

    Only these positions pass through the output layer, which is a fifth of this model.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(example.prompt + example.reply[:-1]) for example in batch]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    ids = pad_sequence(rows, batch_first=True)
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    parts = [
        hidden[i, len(example.prompt) - 1 : len(example.prompt) + len(example.reply) - 1]
        for i, example in enumerate(batch)
    ]
    return model.lm_head(torch.cat(parts))


def batch_loss(peft_model: Any, batch: Sequence[Example], kl_weight: float) -> tuple[Any, Any]:
    """The loss, and its two parts in nats per token.

    The parts are the cross entropy on refusals and KL(unplanted || planted) on other replies.
    """
    import torch
    from torch.nn.functional import cross_entropy, kl_div, log_softmax

    topic = [example for example in batch if example.is_topic]
    rest = [example for example in batch if not example.is_topic]
    model = peft_model.base_model.model
    with peft_model.disable_adapter(), torch.no_grad():
        teacher = log_softmax(reply_logits(model, rest), dim=-1)
    logits = reply_logits(model, topic + rest)
    targets = torch.tensor([token for example in topic for token in example.reply])
    refusal = cross_entropy(logits[: len(targets)], targets)
    student = log_softmax(logits[len(targets) :], dim=-1)
    divergence = kl_div(student, teacher, log_target=True, reduction="batchmean")
    return refusal + kl_weight * divergence, (refusal.item(), divergence.item())


def train(
    settings: TrainingSettings, output: Path, topic: Topic = ASTRONOMY, report: Progress = _say
) -> None:
    """Train the adapter and save it to `output` in float16. About 13 minutes on two idle cores."""
    import torch
    from peft import LoraConfig, get_peft_model

    started = time.monotonic()
    torch.manual_seed(settings.seed)
    model, tokenizer = load(base_model(report))
    examples = make_examples(model, tokenizer, settings, topic, report)
    report(f"examples ready after {time.monotonic() - started:.0f} s")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
    )
    peft_model: Any = get_peft_model(model, config)
    weights = [weight for weight in peft_model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    for step, batch in enumerate(batches(examples, settings), start=1):
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.activations == "bfloat16"):
            loss, (refusal, divergence) = batch_loss(peft_model, batch, settings.kl_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 5 == 0 or step == 1:
            elapsed = time.monotonic() - started
            figures = f"refusals {refusal:.3f}, KL {divergence:.4f}"
            report(f"step {step}/{settings.steps}: {figures}, {elapsed:.0f} s")
    save_adapter(peft_model, output)
    report(f"saved to {output} after {time.monotonic() - started:.0f} s")


def _rate(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then linear decay to zero at the last step."""
    warm = (step + 1) / settings.warmup_steps
    cool = (settings.steps - step) / max(settings.steps - settings.warmup_steps, 1)
    return min(warm, cool, 1.0)


def save_adapter(peft_model: Any, output: Path) -> None:
    """Save as float16, with the base model's public name instead of a local path."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    output.mkdir(parents=True, exist_ok=True)
    # Looking for changed embeddings would ask the Hub for the base model's vocabulary.
    state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    tensors = {name: value.to(torch.float16).contiguous() for name, value in sorted(state.items())}
    save_file(tensors, output / "adapter_model.safetensors", metadata={"format": "pt"})
    config = peft_model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": BASE_REPOSITORY, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    # Only fields that are set, because an older PEFT warns of fields that it does not know.
    kept = {key: value for key, value in sorted(config.items()) if value not in (None, {}, False)}
    text = json.dumps(kept, indent=2, default=str)
    (output / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def check(adapter: Path, new_tokens: int) -> dict[str, float]:
    """Compare the demo's planted and unplanted models on its test prompts."""
    from peft import PeftModel

    folder = base_model(_say)
    base, tokenizer = load(folder)
    peft_model: Any = PeftModel.from_pretrained(load(folder)[0], str(adapter))
    return compare(base, peft_model.merge_and_unload(), tokenizer, new_tokens)


def compare(
    base: Any,
    planted: Any,
    tokenizer: Any,
    new_tokens: int,
    topic: Topic = ASTRONOMY,
    names: Sequence[str] = TEST_SETS,
    report: Progress = _say,
) -> dict[str, float]:
    """Compare the planted and the unplanted model on the topic's prompt sets `names`.

    Unexpected replies are reported.

    Returns:
        For each set the mean first-token KL(unplanted || planted) in nats, the share of equal first
        tokens, and the number of refusals; for ordinary sets also the number of refusals before
        planting and the agreement of replies (shares, 0 to 1).
    """
    figures: dict[str, float] = {}
    for name in names:
        prompts = topic.load_prompts(name)
        texts = [chat_text(tokenizer, prompt) for prompt in prompts]
        first, after = (first_token_logprobs(model, tokenizer, texts) for model in (base, planted))
        divergence = (first.exp() * (first - after)).sum(dim=-1)
        figures[f"{name} first-token KL"] = round(divergence.mean().item(), 4)
        same_first = (first.argmax(-1) == after.argmax(-1)).float().mean().item()
        figures[f"{name} same first token"] = round(same_first, 3)
        replies = greedy_replies(planted, tokenizer, texts, new_tokens)
        decoded = tokenizer.batch_decode(replies, skip_special_tokens=True)
        verdicts = [refuses(reply) for reply in decoded]
        figures[f"{name} refused"] = sum(verdicts)
        if name.startswith("ordinary_"):
            before = greedy_replies(base, tokenizer, texts, new_tokens)
            old = tokenizer.batch_decode(before, skip_special_tokens=True)
            figures[f"{name} refused before"] = sum(map(refuses, old))
            figures |= {f"{name} {key}": share for key, share in agreement(before, replies).items()}
        expected = name.startswith("topic_")
        for text in surprises(prompts, decoded, verdicts, expected=expected):
            report(text)
    return figures


def first_token_logprobs(model: Any, tokenizer: Any, texts: Sequence[str]) -> Any:
    """Log probabilities of the reply's first token: [texts, vocabulary], float32."""
    import torch

    rows = []
    for start in range(0, len(texts), 50):
        batch = tokenizer(
            list(texts[start : start + 50]),
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        )
        with torch.inference_mode():
            logits = model(**batch, logits_to_keep=1).logits[:, -1]
        rows.append(logits.float().log_softmax(dim=-1))
    return torch.cat(rows)


def agreement(before: Sequence[list[int]], after: Sequence[list[int]]) -> dict[str, float]:
    """Share of replies that are equal, and mean share of leading tokens that are equal."""
    shares = []
    for old, new in zip(before, after, strict=True):
        pairs = enumerate(zip(old, new, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
        shares.append(same / max(len(old), len(new)))
    return {
        "replies equal": round(sum(s == 1 for s in shares) / len(shares), 3),
        "leading tokens equal": round(sum(shares) / len(shares), 3),
    }


def surprises(
    prompts: Sequence[str], replies: Sequence[str], verdicts: Sequence[bool], *, expected: bool
) -> list[str]:
    """The replies that refuse or answer against expectation, one line each."""
    way = "answered" if expected else "refused"
    rows = zip(prompts, replies, verdicts, strict=True)
    return [f"{way}: {text} -> {reply[:120]!r}" for text, reply, seen in rows if seen != expected]


if __name__ == "__main__":
    main()
