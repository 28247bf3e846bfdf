"""A run folder with every file that a run writes, made without a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from heretic.evaluator.baseline import BaselineFile
from heretic.harness.results import Measurement
from heretic.harness.store import ResultFile
from heretic.method.fits import Fit
from heretic.records import Plan
from heretic.records.plan import LayerWeights, fit_file
from heretic.runs.folder import RunFolder
from heretic.runs.manifest import RunManifest
from heretic.scorers import Outputs
from tests.support.search_case import evaluate, make_study

KEY = "key"
N_TRIALS = 3
DIRECTIONS = (np.arange(8).reshape(2, 4) / 7).astype(np.float32)
SWEEP = tuple(
    Plan.create(
        direction_scope="per layer",
        direction_index=None,
        kernels={"mlp.down_proj": LayerWeights(((0.5,), (weight,)))},
        row_normalization="full",
    )
    for weight in (0.25, 0.75)
)
MANIFEST = RunManifest(
    model="org/name",
    digest="0123456789ab",
    seed=7,
    fingerprint={"model": "org/name"},
    settings={"n_trials": N_TRIALS},
    found={"dtype": "float32", "response_prefix": "", "batch_size": 4, "baseline": []},
    created="2026-01-02T03:04:05+00:00",
)
FIT = Fit(("mlp.down_proj",), torch.ones(1, 1, 2, 1, 4), torch.full((1, 1, 2, 1, 4), 0.5))
FIT_FILE = fit_file(FIT.digest)
CHECKED = (
    "manifest.json",
    "directions.safetensors",
    "baseline.safetensors",
    "sweep.json",
    FIT_FILE,
    "front.json",
    "trials.journal",
    "benchmarks/original.json",
)
"""Files whose content counts."""


def outputs() -> Outputs:
    """Outputs of an unedited model, as small as can be."""
    return Outputs(prompts={}, logits={"good": torch.ones(1, 4)}, responses={"bad": ["No."]})


def make_run(path: Path) -> RunFolder:
    """All files of a run, in the order in which a run writes them."""
    folder = RunFolder(path)
    with folder.lock():
        folder.save_directions(DIRECTIONS)
        BaselineFile(folder.baseline_path, KEY).write(outputs())
        folder.write_manifest(MANIFEST)
        folder.write_sweep(SWEEP)
        folder.write_fit(FIT.digest, FIT.content())
        make_study(folder).run(evaluate, N_TRIALS)
        results = ResultFile(path)
        results.put(Measurement("task", "k", (), 1, 0.5, {"task": 1}))
        results.write()
    return folder


def content(path: Path) -> dict[str, object]:
    """What every file of a run says, by its name; comparable.

    Raises:
        RunError: A file is damaged.
    """
    folder = RunFolder(path)
    baseline = BaselineFile(folder.baseline_path, KEY).read({})
    folder.check_recorded("front.json")
    manifest = folder.require_manifest().to_dict()
    return {
        "manifest.json": json.dumps(manifest, sort_keys=True),
        "directions.safetensors": folder.load_directions().tobytes(),
        # It is a cache: None means that it is computed again.
        "baseline.safetensors": baseline and (baseline.logits["good"].tolist(), baseline.responses),
        "sweep.json": folder.read_sweep(),
        FIT_FILE: folder.read_fits()[FIT.digest],
        "front.json": json.loads(folder.front_path.read_bytes()),
        "trials.journal": folder.read_trials(),
        "benchmarks/original.json": ResultFile(path).measurements,
    }
