"""Whether a saved adapter adds to its base what the plan says, and names that base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from heretic.compare.adapters import AdapterLayer, read_layers
from heretic.compare.expected import Expected
from heretic.compare.findings import Finding
from heretic.compare.side import Side
from heretic.errors import HereticError
from heretic.export.documents.reproduction import Reproduction
from heretic.export.files import read_json
from heretic.records.plan import Plan
from heretic.system.adapters import ADAPTER_CONFIG
from heretic.system.hub import display_name

NORM_ERROR = 1e-4
"""Largest relative error of a stored norm, which was computed in float32."""


def adapter_findings(
    folder: Path, recorded: Reproduction, base: Side, expected: Mapping[str, Expected] | None
) -> list[Finding]:
    """Check an adapter that `export.adapter` wrote.

    Args:
        expected: The tensors that the plan may edit; None if that is not known.
    """
    try:
        config = read_json(folder / ADAPTER_CONFIG)
        layers = read_layers(folder, base.checkpoint)
    except HereticError as error:
        return [Finding("adapter", f"The adapter cannot be read: {error.message}")]
    findings = [*_config_findings(config, recorded)]
    if not layers:
        findings.append(Finding("adapter", "The adapter adds to no tensor."))
    for name, layer in layers.items():
        if expected is not None and name not in expected:
            text = f"The adapter adds to {name}, which the plan does not edit."
            findings.append(Finding("weights", text))
        findings += _layer_findings(name, layer, base, recorded.plan)
    return findings


def _config_findings(config: Any, recorded: Reproduction) -> Iterator[Finding]:
    config = config if isinstance(config, dict) else {}
    plan, base = recorded.plan, str(config.get("base_model_name_or_path"))
    wanted = str(recorded.settings.get("model"))
    if display_name(base) != display_name(wanted):
        text = f"{ADAPTER_CONFIG} names {base} as the base, and the adapter is for {wanted}."
        yield Finding("adapter", text)
    if config.get("r") != plan.rank or config.get("lora_alpha") != plan.rank:
        text = (
            f"{ADAPTER_CONFIG} has r {config.get('r')} and lora_alpha {config.get('lora_alpha')}, "
            f"and the plan has rank {plan.rank}."
        )
        yield Finding("rank", text)
    if bool(config.get("use_dora")) != (plan.row_normalization == "full"):
        text = (
            f"{ADAPTER_CONFIG} has use_dora {bool(config.get('use_dora'))}, which does not fit row "
            f"normalization {plan.row_normalization}."
        )
        yield Finding("adapter", text)


def _layer_findings(name: str, layer: AdapterLayer, base: Side, plan: Plan) -> Iterator[Finding]:
    if layer.rank != plan.rank:
        text = f"The adapter adds rank {layer.rank} to {name}, and the plan has rank {plan.rank}."
        yield Finding("rank", text)
    shape = base.checkpoint.tensors[name].shape
    shape = shape[::-1] if layer.transposed else shape
    if (len(layer.b), layer.a.shape[1]) != shape:
        yield Finding("adapter", f"The adapter's factors for {name} do not have its shape.")
        return
    numbers = [layer.a, layer.b, *([] if layer.magnitude is None else [layer.magnitude])]
    if not all(torch.isfinite(tensor).all() for tensor in numbers):
        yield Finding("weights", f"The adapter's factors for {name} hold NaN or infinity.")
        return
    if (layer.magnitude is not None) != (plan.row_normalization == "full"):
        yield Finding("adapter", f"The adapter stores norms for {name}, or lacks them.")
    elif layer.magnitude is not None and not _keeps_norms(name, layer, base):
        yield Finding(
            "weights", f"The norms that the adapter stores for {name} are not the base's."
        )


def _keeps_norms(name: str, layer: AdapterLayer, base: Side) -> bool:
    weight = next(base.matrices(name)).float()
    norms = torch.linalg.vector_norm(weight.T if layer.transposed else weight, dim=1)
    assert layer.magnitude is not None
    stored = layer.magnitude.flatten()
    wrong = (stored - norms).abs() > NORM_ERROR * norms.clamp_min(1e-12)
    return not bool((wrong & (stored != 0) & (norms != 0)).any())  # a row may be removed
