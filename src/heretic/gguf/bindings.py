"""llama.cpp's C interface, as the package `llama-cpp-py-sync` binds it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from heretic.errors import ExportError, ModelError
from heretic.gguf.older_libc import usable_copy
from heretic.system.machine import usable_cores
from heretic.system.optional import require

EXTRA = "gguf"
PACKAGE = "llama_cpp_py_sync"
PURPOSE = "Making and running GGUF files"

_log = logging.getLogger(__name__)
_ERROR, _CONTINUED = 4, 5
"""llama.cpp's levels of what it says: an error, and more of what was said last."""

_told: list[str] = []  # errors since `errors_told` began, oldest first
_lock = threading.RLock()


@dataclass(frozen=True, slots=True)
class Bindings:
    """The loaded library.

    Attributes:
        ffi: cffi's view of its header: structs, enums, callbacks.
        lib: Its functions, by their names in `llama.h`.
    """

    ffi: Any
    lib: Any


@cache
def bindings() -> Bindings:
    """The library, loaded once in a process.

    Raises:
        ExportError: The package is not installed, or its library does not load here.
    """
    found = require(f"{PACKAGE}._cffi_bindings", extra=EXTRA, purpose=PURPOSE, kind=ExportError)
    ffi = found.get_ffi()
    try:
        lib = _library(found)
    except (RuntimeError, OSError) as error:
        raise ExportError(
            f"The library of llama.cpp in the package {PACKAGE} does not load: {error}.",
            remedy=f"Install it anew for this machine: pip install --force-reinstall {PACKAGE}",
        ) from error
    _listen(ffi, lib)
    lib.llama_backend_init()
    return Bindings(ffi, lib)


def _library(module: Any) -> Any:
    """The library of the package, or where the system's C library is too old, a copy of it."""
    try:
        return module.get_lib()
    except RuntimeError as error:
        if "GLIBC_" not in str(error):
            raise
    library = Path(str(module.__file__)).with_name("libllama.so")
    return module.get_ffi().dlopen(str(usable_copy(library, f"{PACKAGE}-{version()}")))


def version() -> str:
    """Release of the package, which tells that of llama.cpp."""
    return metadata.version(PACKAGE)


def threads() -> int:
    """Number of threads that llama.cpp is given: `OMP_NUM_THREADS`, or else all usable cores."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdecimal() and int(named) > 0 else usable_cores()


def file_type_numbers() -> dict[str, int]:
    """llama.cpp's numbers of file types (`enum llama_ftype`), by their names in lower case."""
    elements = bindings().ffi.typeof("enum llama_ftype").elements
    short = {
        number: name.removeprefix("LLAMA_FTYPE_").removeprefix("ALL_").removeprefix("MOSTLY_")
        for number, name in elements.items()
    }
    return {name.lower(): number for number, name in short.items()}


@contextmanager
def errors_told() -> Iterator[list[str]]:
    """Collect what llama.cpp says of errors while the context lasts; the list grows meanwhile."""
    with _lock:
        _told.clear()
        yield _told


def _listen(ffi: Any, lib: Any) -> None:
    """Send the library's messages to this module's log; it prints them otherwise."""
    pending: list[str] = []
    level = 0

    def hear(kind: int, text: Any, user_data: Any) -> None:
        nonlocal level
        del user_data
        said = ffi.string(text).decode(errors="replace")
        level = level if kind == _CONTINUED else kind
        pending.append(said)
        if not said.endswith("\n"):
            return
        line = "".join(pending).strip(" \n=")
        pending.clear()
        if line:
            _log.debug("%s", line)
            if level == _ERROR:
                _told.append(line)

    _held.append(ffi.callback("void(enum ggml_log_level, const char *, void *)", hear))
    lib.llama_log_set(_held[-1], ffi.NULL)


_held: list[Any] = []
"""Callbacks that C may call: cffi frees what nobody holds."""


def not_loaded(path: Path, told: Sequence[str]) -> ModelError:
    """The error for a file that does not load, after what llama.cpp told."""
    reason = next((line for line in told if "error" in line), told[-1] if told else "no reason")
    return ModelError(
        f"llama.cpp cannot load {path}: {reason.rstrip('.')}.",
        remedy="Its package llama-cpp-py-sync may be older than the architecture.",
    )


def failed(path: Path, told: Sequence[str]) -> ModelError:
    """The error for a model that does not run, after what llama.cpp told."""
    reason = told[-1].rstrip(".") if told else "no reason"
    return ModelError(f"llama.cpp cannot run {path}: {reason}.", remedy="Check the free memory.")
