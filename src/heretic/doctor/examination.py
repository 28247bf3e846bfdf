"""All checks, and what would fit, as one record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heretic.config.settings import Settings, load_settings
from heretic.doctor import hub, machine, packages
from heretic.doctor.finding import Finding
from heretic.doctor.fit import Fit, Rates, basis, measure, rates_dict, what_fits
from heretic.errors import HereticError
from heretic.model.loading import resolve_dtype
from heretic.pipeline.described import Device
from heretic.system.machine import accelerator, prepare_cpu


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found.

    Attributes:
        device: What a search would run on; None where torch does not work.
        fits: What would fit on it; empty without a device.
        basis: What the figures come from, in sentences.
    """

    findings: tuple[Finding, ...]
    device: Device | None = None
    rates: Rates | None = None
    fits: tuple[Fit, ...] = ()
    basis: tuple[str, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether something will fail."""
        return any(finding.state == "problem" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        device = self.device
        return {
            "ok": not self.fails,
            "findings": [finding.to_dict() for finding in self.findings],
            "device": None
            if device is None
            else {"name": device.name, "memory": device.memory, "is_cpu": device.is_cpu},
            "rates": None if self.rates is None else rates_dict(self.rates),
            "fits": [fit.to_dict() for fit in self.fits],
            "basis": list(self.basis),
        }


def examine(config: Path | None, tell: Callable[[str], None], *, ask_hub: bool) -> Examination:
    """Look at this machine.

    Args:
        config: TOML file in place of `config.toml` in the working directory.
        tell: Called with remarks on files of settings that were read.
        ask_hub: Whether to ask the Hub, which takes some seconds at most.
    """
    settings, of_settings = _settings(config, tell)
    findings = [*_findings(settings, ask_hub=ask_hub), of_settings]
    if findings[0].state == "problem":  # torch does not work
        return Examination(tuple(findings))
    found = accelerator()
    if found.type == "cpu":
        prepare_cpu()
    dtype = settings.dtypes[0]
    device = Device.of(dtype, None)
    resolved = resolve_dtype(dtype, found)
    rates = measure(found, _half() if isinstance(resolved, str) else resolved)
    fits = tuple(what_fits(settings, device, rates))
    return Examination(tuple(findings), device, rates, fits, tuple(basis(device, rates, settings)))


def _half() -> Any:
    import torch

    return torch.bfloat16


def _settings(config: Path | None, tell: Callable[[str], None]) -> tuple[Settings, Finding]:
    """The settings that are found here, or the default ones, and whether they can be read."""
    name = "Settings"
    try:
        settings = load_settings({}, config, require_model=False, tell=tell)
    except HereticError as error:
        finding = Finding(name, "problem", error.message, error.remedy or "")
        return Settings.from_layers([]), finding
    return settings, Finding(name, "ok", "Files and variables with settings can be read.")


def _findings(settings: Settings, *, ask_hub: bool) -> Iterator[Finding]:
    checked = machine.check_accelerator()
    yield checked
    yield machine.check_processor()
    yield machine.check_memory()
    yield machine.check_runs_folder(settings.study_checkpoint_dir)
    yield machine.check_hub_cache()
    yield hub.check_hub(ask=ask_hub)
    yield machine.check_system()
    yield packages.check_python()
    yield packages.check_versions()
    yield packages.check_requirements()
    kind = "cpu" if checked.state == "problem" else accelerator().type
    yield from packages.check_known_failures(kind)
    yield packages.check_mixture()
    yield packages.check_extras()
    yield packages.check_llama()
    yield packages.check_ray()
