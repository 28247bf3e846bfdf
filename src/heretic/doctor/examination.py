"""All checks, and what would fit, as one record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.config.settings import Settings, load_settings
from heretic.doctor import hub, machine, packages, shared
from heretic.doctor.finding import Finding
from heretic.doctor.fit import Fit, Rates, basis, measure, what_fits
from heretic.doctor.room import Room, room_of
from heretic.errors import HereticError, SettingsError
from heretic.model.loading import resolve_dtype
from heretic.pipeline.described import Device
from heretic.system.machine import accelerator, prepare_cpu

if TYPE_CHECKING:
    import torch

COMPUTED = ("float16", "bfloat16", "float32", "float64")
"""Dtypes in which models are computed."""

ASSUMED = "bfloat16"
"""What `auto` is taken to be on an accelerator, where it is the checkpoint's dtype."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found.

    Attributes:
        device: What a search would run on; None where torch does not work.
        room: Its memory; None without a device.
        rates: What it was measured to do; None if it could not be measured.
        fits: What would fit on it; empty without a device.
        basis: What the figures come from, in sentences.
    """

    findings: tuple[Finding, ...]
    device: Device | None = None
    room: Room | None = None
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
            "room": None if self.room is None else self.room.to_dict(),
            "rates": None if self.rates is None else self.rates.to_dict(),
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
    findings = list(_findings(settings, ask_hub=ask_hub))
    if findings[0].state == "problem":  # torch does not work
        return Examination((*findings, of_settings))
    found = accelerator()
    try:
        names = [_computed(name, found) for name in settings.dtypes]
    except SettingsError as error:
        of_settings = Finding(of_settings.name, "problem", error.message, error.remedy or "")
        settings = settings.replaced(dtypes=Settings.from_layers([]).dtypes)
        names = [_computed(name, found) for name in settings.dtypes]
    if found.type == "cpu":
        prepare_cpu()
    device = Device.of(settings.dtypes[0], None)
    room, rates = room_of(found, device.memory), _measured(found, names[0])
    fits = tuple(what_fits(settings, device, room, rates, names[0]))
    said = tuple(basis(device, rates, settings))
    return Examination((*findings, of_settings), device, room, rates, fits, said)


def _computed(name: str, device: torch.device) -> str:
    """The name of the dtype that a dtype setting stands for.

    Raises:
        SettingsError: No model is computed in it.
    """
    found = resolve_dtype(name, device)
    if isinstance(found, str):
        return ASSUMED
    resolved = str(found).removeprefix("torch.")
    if resolved not in COMPUTED:
        raise SettingsError(
            f"dtypes names {name}, and models are not computed in it.",
            remedy=f"Use auto, {', '.join(COMPUTED[:-1])} or {COMPUTED[-1]}.",
        )
    return resolved


def _measured(device: torch.device, dtype: str) -> Rates | None:
    """What the device does; None if it cannot be asked, e.g. as others have its memory."""
    import torch

    try:
        return measure(device, getattr(torch, dtype))
    except (RuntimeError, TypeError):
        return None


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
    yield packages.check_ray(settings)
    yield from shared.check_named(settings)
