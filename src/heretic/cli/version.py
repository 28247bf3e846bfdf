"""`heretic --version`: the versions and the device that figures depend on."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import click

from heretic import __version__
from heretic.system.distributions import HERE, mixture
from heretic.system.optional import installed


def show_version(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    """Print this release, then what it runs on, and exit: the callback of `--version`.

    torch is imported for the device, which takes seconds; the first line does not wait for it.
    """
    del option
    if not given or ctx.resilient_parsing:
        return
    click.echo(f"heretic {__version__}")
    for line in _surroundings():
        click.echo(line)
    ctx.exit()


def _surroundings() -> Iterator[str]:
    yield f"transformers {_version('transformers')}"
    yield f"torch {_version('torch')}, device: {_device()}"
    yield f"Python {platform.python_version()}, package in {HERE}"
    warning = mixture()
    if warning:
        yield f"Warning: {warning}"


def _version(distribution: str) -> str:
    return installed(distribution) or "is not installed"


def _device() -> str:
    """The product name of the accelerator, CPU, or why torch tells neither."""
    from heretic.system.machine import accelerator, device_name

    try:
        return device_name(accelerator())
    except (ImportError, OSError, RuntimeError) as error:  # such as a CUDA library that is missing
        return f"unknown, since torch does not work here: {' '.join(str(error).split())}"
