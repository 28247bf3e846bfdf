"""What is measured: a model with its prompts and directions, and plans of two kinds."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from benchmarks.peer.records import KEYWORD_SCORERS
from torch import Tensor

from heretic import pipeline
from heretic.config import Settings
from heretic.demo.base import planted_model
from heretic.demo.data import demo_prompts, prompt_file
from heretic.events import Event, Notice
from heretic.model import Model
from heretic.model.loading import resolve_dtype
from heretic.prompts import Prompt
from heretic.records import ATTENTION, MLP, Kernel, Plan
from heretic.system.machine import accelerator

Kind = Literal["low", "high", "fixed"]
"""Plans that leave next to no refusals, so that replies are long; or nearly all of them; or of a
model with random weights, whose replies have one length."""

SETS = {
    "good_prompts": "ordinary_train",
    "bad_prompts": "topic_train",
    "good_evaluation_prompts": "ordinary_test",
    "bad_evaluation_prompts": "topic_test",
}
"""Setting to the demo's prompt file."""

DEMO = "demo"
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b": {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
    },
    "qwen3-8b": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
    },
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
    },
}
"""Models with random weights, by name: entries of a configuration, in addition to `COMMON`."""

COMMON: dict[str, Any] = {
    "model_type": "qwen3",
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TRAINED_TOKENS = 3000
"""Tokens made from the prompts, so that these are as long as with a real tokenizer."""

LARGEST_BATCH = 2048
"""Slots that a random model may take, where memory allows."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A model ready to be measured.

    Attributes:
        shape: `demo`, a name in `SHAPES`, or the name of a model of the caller's.
        fixed_lengths: Whether replies have one length whatever they say: random weights say
            nothing.
        automatic_slots: The batch size that Heretic chose.
        warnings: What Heretic has warned of so far: a smaller batch, or the slower way.
    """

    shape: str
    fixed_lengths: bool
    settings: Settings
    model: Model
    directions: Tensor
    prompts: pipeline.PromptSets
    automatic_slots: int
    warnings: Sequence[str]

    def plans(self, kind: Kind, count: int) -> list[Plan]:
        """The first `count` plans of a kind; both kinds edit the same matrices as strongly."""
        scale = self.model.n_layers / 30  # the figures are for the demo's 30 layers
        found = []
        for index in range(count):
            part = index * 0.618 % 1  # spread evenly, however many there are
            kernel = _kernel(1.0 + 0.5 * part, 8 + 10 * part, scale)
            # A direction from early layers has little to do with refusing.
            early = (3 + 3 * part) * scale if kind == "high" else None
            found.append(self._plan(kernel, early))
        return found

    def rival_plans(self) -> list[Plan]:
        """What a search may have evaluated before: from hardly any edit to a good one."""
        scale = self.model.n_layers / 30
        shapes = ((0.05, 8), (0.3, 15), (0.6, 8), (0.8, 12))
        return [self._plan(_kernel(weight, far, scale), None) for weight, far in shapes]

    def _plan(self, kernel: Kernel, direction_index: float | None) -> Plan:
        return Plan.create(
            direction_scope="per layer" if direction_index is None else "global",
            direction_index=direction_index,
            kernels={ATTENTION: kernel, MLP: kernel},
            row_normalization=self.settings.row_normalization,
        )


def _kernel(weight: float, distance: float, scale: float) -> Kernel:
    return Kernel(weight, 22 * scale, 0.3 * weight, distance * scale)


class Warnings:
    """A reporter that shows warnings as they come, and keeps them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def emit(self, event: Event) -> None:
        """Show and keep a warning; drop anything else."""
        if isinstance(event, Notice) and event.level == "warning":
            self.texts.append(event.text)
            print(event.text, file=sys.stderr, flush=True)


def open_bench(
    shape: str, *, prompts: int, dtype: str, new_tokens: int, folder: Path | None = None
) -> Bench:
    """Load or make the model, and compute directions.

    Args:
        prompts: In each of the two evaluation sets; 0 for all.
        new_tokens: The longest replies, for which Heretic's own batch size leaves room.
        folder: Of a model that says something; `shape` is then its name alone.
    """
    if shape == DEMO:
        folder = planted_model()
    reporter, random = Warnings(), folder is None
    with tempfile.TemporaryDirectory() as temporary, _random_weights(random):
        place = folder or write_folder(Path(temporary), SHAPES[shape])
        settings = _settings(str(place), prompts, dtype, new_tokens, random)
        sets = pipeline.load_prompts(settings, reporter)
        model, directions = pipeline.model_and_directions(settings, sets, reporter)
    if random:
        end_nowhere(model)
    found = settings, model, directions, sets, model.batch_size, reporter.texts
    return Bench(shape, random, *found)


def _settings(model: str, prompts: int, dtype: str, new_tokens: int, random: bool) -> Settings:
    given: dict[str, Any] = {
        setting: {"dataset": str(prompt_file(name)), "split": "train[:100]"}
        for setting, name in SETS.items()
    }
    if prompts:
        for setting in ("good_evaluation_prompts", "bad_evaluation_prompts"):
            given[setting]["split"] = f"train[:{prompts}]"
    if random:
        given["max_batch_size"] = LARGEST_BATCH
    return Settings.restore(
        {
            **given,
            "model": model,
            "dtypes": [dtype],
            "max_response_length": new_tokens,
            "response_prefix": "",
            "scorers": KEYWORD_SCORERS,
            "seed": 1,
        }
    )


def end_nowhere(model: Model) -> None:
    """Let no token end a reply, so that all have the same length."""
    model.model.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None


@contextmanager
def without_end_tokens(model: Model) -> Iterator[None]:
    """`end_nowhere` while the context lasts."""
    before = model.model.generation_config.eos_token_id, model.tokenizer.eos_token
    end_nowhere(model)
    try:
        yield
    finally:
        model.model.generation_config.eos_token_id, model.tokenizer.eos_token = before


# --- models with random weights ------------------------------------------------------------


def write_folder(path: Path, sizes: Mapping[str, Any]) -> Path:
    """A model's folder with all but its weights."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = AutoConfig.for_model(**{**COMMON, **sizes})
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.save_pretrained(path)
    _tokenizer(sizes["vocab_size"]).save_pretrained(path)
    return path


def _tokenizer(size: int) -> Any:
    """A tokenizer of the demo's words, filled up to `size` tokens: decoding costs what it should.

    No text comes out as one of the filling tokens, but the random model makes them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(TRAINED_TOKENS, size),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(
        (line for name in SETS.values() for line in demo_prompts(name)), trainer
    )
    whole = json.loads(raw.to_str())
    vocabulary = whole["model"]["vocab"]
    space = "\u0120"  # how a byte-level vocabulary writes it
    vocabulary.update({f"{space}token{i}": i for i in range(len(vocabulary), size)})
    result = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole)),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    result.chat_template = TEMPLATE
    return result


def random_model(folder: str | Path, dtype: torch.dtype) -> Any:
    """The model of a folder's configuration with random weights, made on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(accelerator()):
        config = AutoConfig.from_pretrained(folder)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@contextmanager
def _random_weights(wanted: bool) -> Iterator[None]:
    """Make the model where Heretic would read its weights: none are written or downloaded."""
    if not wanted:
        yield
        return

    def made(options: Any, dtype: str, _: Any) -> tuple[Any, tuple[str, ...]]:
        model = random_model(options.model, _real(resolve_dtype(dtype, accelerator())))
        return model.requires_grad_(False), ()

    loading = "heretic.model.loading"
    no_files = mock.patch(f"{loading}.check_source", return_value=None)
    with no_files, mock.patch(f"{loading}._load_weights", made):
        yield


def _real(dtype: torch.dtype | str) -> torch.dtype:
    """A checkpoint that was never written has no dtype of its own."""
    return dtype if isinstance(dtype, torch.dtype) else torch.bfloat16


# --- the machine ---------------------------------------------------------------------------


def machine(model: Model) -> str:
    """Processor, cores, threads, accelerator, dtype and torch's version, in a line."""
    parts = [_processor(), f"{os.cpu_count()} cores", f"{torch.get_num_threads()} torch threads"]
    if model.device.type == "cuda":
        memory = torch.cuda.get_device_properties(model.device).total_memory / 2**30
        parts.append(f"{torch.cuda.get_device_name(model.device)} ({memory:.0f} GiB)")
    return ", ".join(
        [*parts, str(model.dtype).removeprefix("torch."), f"torch {torch.__version__}"]
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                return value
    return platform.processor() or platform.machine()


def encoded_lengths(model: Model, prompts: list[Prompt]) -> list[int]:
    """Tokens of each prompt, template included."""
    return [len(row) for row in model.encode_rows(prompts)]
