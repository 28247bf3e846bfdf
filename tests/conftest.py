"""Shared test set-up: no network, no accelerator, no timing assertions."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Results to be compared must not depend on the machine: an accelerator rounds in other ways.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models here are so small that a second thread costs more than it brings, above all on a busy
# machine. Torch reads this when it is imported; programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# PaCMAP compiles itself when it is first imported, for longer than Python takes for a few points.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

# Shells switch SIGINT off for what they start in the background, and nohup switches SIGHUP off.
# Programs inherit that, and tests send these signals. A handler is not inherited: with one here,
# what tests start gets the default again.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

import pytest
from hypothesis import settings

settings.register_profile("heretic", deadline=None, derandomize=True)
settings.load_profile("heretic")


@pytest.fixture(autouse=True)
def short_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen trials are scored on few items and shorter replies: all would take seconds a test."""
    from heretic.pipeline import long_replies
    from heretic.scorers.capability import OWN_ITEMS

    few = OWN_ITEMS.model_copy(update={"split": "train[:6]"})
    monkeypatch.setattr(long_replies, "CAPABILITY", {"items": few})
    monkeypatch.setattr(long_replies, "TOKENS", 16)
