"""A plan as an adapter in PEFT's file format: LoRA of the plan's rank, or DoRA for `full`.

Both are exact (docs/how-it-works.md): nothing is approximated and nothing is trained. The files are
written directly; PEFT is needed only to use them. Format: huggingface.co/docs/peft, "PEFT
checkpoint format"; DoRA: Liu et al. 2024, arXiv 2402.09353.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.errors import ExportError
from heretic.export.files import write_json
from heretic.export.serving import is_dora
from heretic.records.plan import Plan
from heretic.system.adapters import ADAPTER_CONFIG
from heretic.system.files import expanded
from heretic.system.hub import is_local

if TYPE_CHECKING:
    from torch import Tensor

    from heretic.method.edits import LowRank
    from heretic.model.core import Model

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def write_adapter(model: Model, plan: Plan, directions: Tensor, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` (float32) into `folder`.

    Args:
        model: Unedited.
        directions: float32 [layers + 1, hidden] or [layers + 1, k, hidden].

    Raises:
        ExportError: The plan edits no module, or the model has experts.
    """
    from safetensors.torch import save_file

    factors = adapter_factors(model, plan, directions)
    if not factors:
        raise ExportError(
            "The plan leaves every module alone, so there is no adapter to write.",
            remedy="Choose another trial.",
        )
    save_file(adapter_tensors(factors), folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / ADAPTER_CONFIG, adapter_config(model, plan, list(factors)))


def adapter_factors(model: Model, plan: Plan, directions: Tensor) -> dict[str, LowRank]:
    """Exact factors of the edited writers, by name.

    Raises:
        ExportError: The model has experts.
    """
    writers = {writer.name: writer for writer in model.writers}
    experts = next((writer for writer in model.writers if writer.expert is not None), None)
    if experts is not None:
        raise ExportError(
            f"An adapter cannot hold experts that are stacked in one parameter ({experts.name}).",
            remedy="Save merged weights (--export-strategy merge).",
        )
    factors = {}
    for name, edit in model.plan_edits(plan, directions).items():
        weight = writers[name].weight()
        if (edit.read @ weight).any():  # otherwise the edit changes nothing
            factors[name] = edit.low_rank(weight)
    return factors


def adapter_tensors(factors: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """Tensors under the names that PEFT reads, float32.

    `lora_A.weight` [k, d_in], `lora_B.weight` [d_out, k], `lora_magnitude_vector` [d_out].
    """
    import torch

    tensors = {}
    for name, factor in factors.items():
        b = factor.b
        if factor.magnitude is not None:
            # PEFT divides by the norm of each row of W + BA. A row that is to be zero has
            # magnitude 0 and may have norm 0 too, and 0 / 0 would fill it with NaN.
            b = torch.where(factor.magnitude.unsqueeze(-1) == 0, 1.0, b)
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = factor.magnitude
        tensors[f"{PREFIX}{name}.lora_A.weight"] = factor.a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b
    return {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in tensors.items()
    }


def adapter_config(model: Model, plan: Plan, names: list[str]) -> dict[str, Any]:
    """The content of `adapter_config.json`; keys that are left out take PEFT's defaults."""
    transposed = {writer.name: writer.transposed for writer in model.writers}
    every_module = (name for name, _ in model.model.named_modules())
    return {
        "base_model_name_or_path": _full_name(model.options.model),
        "bias": "none",
        "fan_in_fan_out": any(transposed[name] for name in names),
        "inference_mode": True,
        "lora_alpha": plan.rank,  # PEFT scales by alpha / r
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": plan.rank,
        "revision": model.options.model_commit,
        "target_modules": target_modules(names, every_module),
        "task_type": "CAUSAL_LM",
        "use_dora": is_dora(plan),
        "use_rslora": False,
    }


def _full_name(model: str) -> str:
    """A Hub id unchanged; a folder as an absolute path, valid from any working directory."""
    return str(expanded(model).resolve()) if is_local(model) else model


def target_modules(names: list[str], every_module: Iterable[str]) -> list[str] | str:
    """The `target_modules` with which PEFT selects exactly the modules of these names.

    PEFT treats a listed name as a suffix. If another module's name ends in one of ours (such as in
    a vision tower inside a wrapper), the result is a regular expression, which must match in full.
    """
    wanted = set(names)
    clash = any(
        module not in wanted and any(module.endswith(f".{name}") for name in names)
        for module in every_module
    )
    if not clash:
        return sorted(wanted)
    return "|".join(re.escape(name) for name in sorted(wanted))
