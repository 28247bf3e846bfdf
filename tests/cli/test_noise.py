"""What libraries say to programmers stays off the screen, and a notice is shown once."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tests.support.terminal import environment, written

from heretic.cli.display.plain import PlainReporter
from heretic.events import Notice

PROGRAM = """
import sys, warnings
from heretic.cli import main
def noisy(arguments):
    from huggingface_hub.utils import logging
    logging.get_logger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
    warnings.warn("It will be removed.", FutureWarning)
    warnings.warn("It is deprecated.", DeprecationWarning)
    warnings.warn("Look here.", UserWarning)
    return 0
main.run = noisy
sys.exit(main.main([]))
"""
NOISE = {"Retrying in 1s", "It will be removed.", "It is deprecated."}


def printed(folder: Path, *options: str, **variables: str) -> str:
    result = subprocess.run(
        [sys.executable, *options, "-c", PROGRAM],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stderr


def test_retries_and_deprecations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.endswith("_VERBOSITY")]:
        monkeypatch.delenv(name)
    found = printed(tmp_path)
    assert [noise for noise in NOISE if noise in found] == []
    assert "Look here." in found
    asked_for = printed(tmp_path, "-W", "default", HF_HUB_VERBOSITY="warning")
    assert {noise for noise in NOISE if noise in asked_for} == NOISE


def test_a_notice_is_shown_once() -> None:
    reporter = PlainReporter(Console(file=io.StringIO(), width=80))
    for text in ("Device: CPU", "Device: CPU", "Batch size is 8", "Device: CPU"):
        reporter.emit(Notice(text))
    reporter.emit(Notice("Device: CPU", level="warning"))
    assert written(reporter.console).splitlines() == [
        "Device: CPU",
        "Batch size is 8",
        "Warning: Device: CPU",
    ]
