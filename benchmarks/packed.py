"""What packing an edited model costs: the divergence by rounding beside that by the edit.

    python -m benchmarks.packed MODEL [--schemes w4a16 nvfp4] [--prompts 32]

The model is quantised by rounding to the nearest level (compressed-tensors, no calibration), loaded
as users load it, edited along a difference of means, saved in its own format and loaded again. All
divergences are KL of the first token, in nats, on prompts that the direction was not made from.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from tests.support import export_case, packed
from tests.support.search_case import Recorder
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import heretic
from heretic.export.saving import save
from heretic.model import Model
from heretic.prompts import Prompt
from heretic.records import ATTENTION, MLP, Kernel, Plan
from heretic.scorers.kl_divergence import kl_divergence

SCHEMES: dict[str, dict[str, Any]] = {
    "fp8-block": {"weights": {**packed.FP8, "strategy": "block", "block_structure": [128, 128]}},
    "fp8-channel": packed.SCHEMES["fp8-channel"],
    "w8a16": packed.SCHEMES["w8a16"],
    "w4a16": {"weights": {**packed.INTEGERS, "strategy": "group", "group_size": 64}},
    "w4a16-asymmetric": {
        "weights": {**packed.INTEGERS, "strategy": "group", "group_size": 64, "symmetric": False}
    },
    "nvfp4": packed.SCHEMES["nvfp4"],
}


def lines(name: str, count: int) -> list[Prompt]:
    """Prompts of the demo."""
    file = Path(heretic.__file__).parent / "demo" / "prompts" / f"{name}.txt"
    rows = file.read_text(encoding="utf-8").splitlines()[:count]
    return [Prompt(system="", user=row) for row in rows]


def measured(base: Path, dense: Tensor | None, out: Path, count: int) -> dict[str, float]:
    """Divergences of one packed model; `dense` holds the logits of the unquantised one."""
    settings, heard = export_case.settings(base, batch_size=8), Recorder()
    model = Model(settings, heard)
    held_out = lines("ordinary_held_out", count)
    before = model.get_logits_batched(held_out, report=False)
    good, bad = (model.get_residuals_batched(lines(n, count)) for n in NAMES)
    directions = torch.nn.functional.normalize((bad.mean(0) - good.mean(0)).float(), dim=-1)
    directions[0] = 0
    layers = model.n_layers
    kernel = Kernel(1.0, layers * 0.6, 0.2, layers * 0.5)
    plan = Plan.create(
        direction_scope="global",
        direction_index=layers * 0.6,
        kernels={ATTENTION: kernel, MLP: kernel},
        row_normalization="full",
    )
    with model.edited(plan, directions):
        edited = model.get_logits_batched(held_out, report=False)
    request = export_case.request(settings, plan, directions=directions)
    save(model, request, out, strategy="merge", reporter=heard)
    saved = Model(export_case.settings(out, batch_size=8))
    after = saved.get_logits_batched(held_out, report=False)
    print(*(text for text in heard.notices() if "rounds them" in text), sep="\n")
    return {
        "quantising alone": float("nan") if dense is None else kl_divergence(dense, before),
        "edit": kl_divergence(before, edited),
        "rounding the edited weights": kl_divergence(edited, after),
        "saved model": kl_divergence(before, after),
    }


NAMES = ("ordinary_train", "topic_train")


def main() -> None:
    """Measure each scheme, and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--prompts", type=int, default=32)
    arguments = parser.parse_args()
    original = Model(export_case.settings(arguments.model, batch_size=8))
    held_out = lines("ordinary_held_out", arguments.prompts)
    dense = original.get_logits_batched(held_out, report=False)
    original.unload()
    for name in arguments.schemes:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "base"
            loaded = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
            packed.quantise(loaded, SCHEMES[name], base)
            AutoTokenizer.from_pretrained(arguments.model).save_pretrained(base)
            del loaded
            found = measured(base, dense, Path(folder) / "out", arguments.prompts)
            print(name, {kind: round(value, 5) for kind, value in found.items()}, flush=True)


if __name__ == "__main__":
    main()
