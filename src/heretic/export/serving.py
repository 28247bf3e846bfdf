"""Which programs load what is saved, and how: PEFT and vLLM for adapters, both for whole models.

What vLLM takes: its `PEFTHelper` refuses DoRA and `modules_to_save`, and `LoRAConfig` has the
limits of ranks and the default of 16 (vllm/lora/peft_helper.py, vllm/config/lora.py of 0.26;
github.com/vllm-project/vllm/issues/10849). An adapter of ours has no biases and no whole modules.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from heretic.records.plan import Plan

if TYPE_CHECKING:
    from heretic.export.request import Strategy

VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `--max-lora-rank` from its default on."""


def is_dora(plan: Plan) -> bool:
    """Whether an adapter of the plan is a DoRA, not a plain LoRA."""
    return plan.row_normalization == "full"


def vllm_options(rank: int) -> str | None:
    """VLLM's options for a plain LoRA of that rank; None if the rank is above its limits."""
    limit = next((limit for limit in VLLM_RANKS if rank <= limit), None)
    if limit is None:
        return None
    return "--enable-lora" if limit == VLLM_RANKS[0] else f"--enable-lora --max-lora-rank {limit}"


def adapter_text(plan: Plan) -> str:
    """What programs load an adapter of the plan, in a sentence or two."""
    if is_dora(plan):
        return (
            "The plan keeps row norms (row_normalization full), so its adapter is a DoRA: PEFT "
            "loads it, vLLM and llama.cpp do not. For those save merged weights "
            "(--export-strategy merge)."
        )
    options = vllm_options(plan.rank)
    if options is None:
        return (
            f"The adapter is a plain LoRA of rank {plan.rank}, and vLLM takes {VLLM_RANKS[-1]} at "
            "most. For vLLM save merged weights (--export-strategy merge)."
        )
    return f"The adapter is a plain LoRA of rank {plan.rank}; vLLM loads it with {options}."


def serving_text(plan: Plan, strategy: Strategy, base: str) -> str:
    """The model card's words on vLLM, in Markdown.

    Args:
        base: The original's Hub id, or its folder's name.
    """
    if strategy == "merge":
        return _command("vllm serve PATH")
    options = None if is_dora(plan) else vllm_options(plan.rank)
    if options is None:
        why = "DoRA adapters" if is_dora(plan) else f"adapters of a rank above {VLLM_RANKS[-1]}"
        return (
            f"vLLM does not load {why}. For vLLM, save the model that the lines above have merged, "
            'by `model.save_pretrained("merged")` and `tokenizer.save_pretrained("merged")`, and '
            "serve it by `vllm serve merged`. vLLM was not tried.\n"
        )
    command = f"vllm serve {shlex.quote(base)} {options} --lora-modules edited=PATH"
    return _command(command) + (
        f"Requests name the model `edited`. vLLM takes ranks up to {VLLM_RANKS[0]} unless "
        f"`--max-lora-rank` says more; this adapter has rank {plan.rank}.\n"
    )


def _command(command: str) -> str:
    place = "PATH is the folder, or the id on the Hub"
    return f"With vLLM, where it was not tried: `{command}`. {place}.\n"
