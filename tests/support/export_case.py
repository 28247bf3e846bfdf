"""A tiny model, a plan and a request that exports are made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from heretic.config import Settings
from heretic.export.request import ExportOptions, ExportRequest
from heretic.method.directions import orthonormal
from heretic.method.fits import Fit
from heretic.model import Model
from heretic.records import (
    ATTENTION,
    MLP,
    AnyKernel,
    FittedKernel,
    Kernel,
    LayerWeights,
    Plan,
    RowNormalization,
    Score,
    Trial,
)
from heretic.records.options import options_of
from heretic.runs.manifest import RunManifest
from tests.support import tiny

BASELINE = (
    Score("refusals", 0.9, "minimize", "18/20"),
    Score("kl_divergence", 0.0, "minimize", "0.0000"),
)
SCORES = (
    Score("refusals", 0.1, "minimize", "2/20"),
    Score("kl_divergence", 0.0625, "minimize", "0.0625"),
)
ATTENTION_KERNEL = Kernel(1.2, 1.0, 0.4, 1.5)
MLP_KERNEL = Kernel(0.9, 2.0, 0.1, 1.0)
NEVER = Kernel(0.0, 1.0, 0.0, 5.0)
FREE_ATTENTION = LayerWeights(((1.2, 0.4), (0.0, 0.9), (0.5, -0.3)))
FREE_MLP = LayerWeights(((), (0.9, 0.7), (1.1,)))


def plan(
    row_normalization: RowNormalization = "full",
    attention: AnyKernel = ATTENTION_KERNEL,
    mlp: AnyKernel = MLP_KERNEL,
    rank: int = 1,
) -> Plan:
    """A plan that edits most writers of a model of three layers and leaves one alone."""
    return Plan.create(
        direction_scope="global",
        direction_index=1.25,
        kernels={ATTENTION: attention, MLP: mlp},
        row_normalization=row_normalization,
        rank=rank,
    )


def free_plan(row_normalization: RowNormalization = "full", rank: int = 2) -> Plan:
    """A free-form plan that edits the same writers, along up to two directions."""
    return plan(row_normalization, FREE_ATTENTION, FREE_MLP, rank)


def fit() -> Fit:
    """A fit of rank 2 and two points at random, which leaves the same writer alone."""
    generator = torch.Generator().manual_seed(4)
    write, read = (torch.randn(2, 2, 3, 2, 32, generator=generator) / 6 for _ in range(2))
    write[:, 1, 0] = 0
    return Fit((ATTENTION, MLP), write, read)


def fitted_plan(row_normalization: RowNormalization = "none") -> Plan:
    """A place between the two points of `fit`."""
    digest = fit().digest
    kernels = {
        ATTENTION: FittedKernel(digest, 0.3, 1.1),
        MLP: FittedKernel(digest, 0.7, 0.8),
    }
    return Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels=kernels,
        row_normalization=row_normalization,
        rank=2,
    )


PLANS: dict[str, Callable[[RowNormalization], Plan]] = {
    "rank 1": plan,
    "rank 2": lambda variant: plan(variant, rank=2),
    "free-form": free_plan,
    "fit": fitted_plan,
}
"""Plans by what they show, given the variant; all edit the same writers."""


def directions(n_layers: int = 3, hidden: int = 32, seed: int = 0) -> Tensor:
    """Random unit directions, float32 [layers + 1, hidden]; row 0 is zero."""
    generator = torch.Generator().manual_seed(seed)
    rows = functional.normalize(torch.randn(n_layers + 1, hidden, generator=generator), dim=-1)
    rows[0] = 0
    return rows


def basis(n_layers: int = 3, hidden: int = 32, k: int = 2) -> Tensor:
    """`directions` and further ones orthogonal to them, float32 [layers + 1, k, hidden]."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(n_layers + 1, k, hidden, generator=generator)
    rows[:, 0] = directions(n_layers, hidden)
    rows = torch.stack([orthonormal(row) for row in rows])
    rows[0] = 0
    return rows


def prompt_files(folder: Path) -> dict[str, dict[str, str]]:
    """Prompt sets as text files, under the names of their settings."""
    tiny.prompt_files(folder)
    sets = {}
    for kind in ("good", "bad"):
        path = folder / f"{kind}.txt"
        sets[f"{kind}_prompts"] = {"dataset": str(path), "split": "train[:8]"}
        sets[f"{kind}_evaluation_prompts"] = {"dataset": str(path), "split": "train[8:]"}
    return sets


def settings(base: Path, **values: Any) -> Settings:
    """Settings for a tiny model; nothing is read from the environment."""
    given: dict[str, Any] = {
        "model": str(base),
        "dtypes": ["float32"],
        "batch_size": 4,
        "response_prefix": "",
        "max_response_length": 4,
        "seed": 7,
        **values,
    }
    return Settings.restore(given)


def request(
    of: Settings, chosen: Plan | None = None, *, scores: tuple[Score, ...] = SCORES, **values: Any
) -> ExportRequest:
    """A request with made-up figures."""
    manifest = RunManifest(
        model=of.model,
        digest="0123456789ab",
        seed=7,
        fingerprint={},
        settings={},
        found={"batch_size": 4},
    )
    return ExportRequest(
        **{
            "trial": Trial(17, chosen or plan(), scores),
            "directions": directions(),
            "baseline": BASELINE,
            "manifest": manifest,
            "options": options_of(ExportOptions, of),
            "settings": of.to_dict(),
            **values,
        }
    )


def load(base: Path, **values: Any) -> Model:
    """The tiny model of a folder, which knows `fit`."""
    model = Model(settings(base, **values))
    model.add_fits([fit()])
    return model
