"""A look at a model's files before anything reads them, so that errors name the file.

Otherwise a pointer of git-lfs, a truncated shard or a saved web page appears as some error of a
parser, long after the start, and looks like a fault of the dtype.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heretic.errors import HereticError, ModelError
from heretic.model.promises import check_layers
from heretic.quantised.kinds import quantisation_of
from heretic.system.adapters import ADAPTER_CONFIG, Adapter
from heretic.system.documents import read_json, read_text
from heretic.system.files import expanded
from heretic.system.headers import safetensors_header, stays_inside
from heretic.system.hub import base_folder, gguf_parts, is_local
from heretic.system.models import check_file, check_gguf, model_folder

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
"""Names of weight files, in the order in which they are looked for."""

READ = frozenset(
    {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    | {"special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"}
    | {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model"}
    | {"chat_template.json", "chat_template.jinja", "processor_config.json"}
    | {"preprocessor_config.json", ADAPTER_CONFIG}
)
"""Files beside the weights that loading reads."""

TABLES = frozenset(file for file in READ if file.endswith(".json")) - {
    "tokenizer.json",
    "vocab.json",
}
"""Those that hold one small JSON object."""

MAY_BE_EMPTY = frozenset({"merges.txt", "vocab.txt", "chat_template.jinja"})

TEXTS = ("chat_template.jinja", "merges.txt", "vocab.txt")
"""Those that hold UTF-8 text."""

PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""First bytes of what `torch.save` writes, and wrote before version 1.6."""


def check_files(name: str, revision: str | None, allow_pickle: bool) -> None:
    """Look at the files of a model that are on this machine.

    Args:
        name: Hub id, folder or GGUF file; of a model on the Hub, the cached files are looked at.
        allow_pickle: Whether its weights may be pickles.

    Raises:
        ModelError: The folder or file does not exist or holds no model; one of the files is not
            what its name says, or is cut off; its weights are quantised in a way that is not
            known; or they are pickles without consent.
    """
    if gguf_parts(name) is not None:
        if is_local(name):
            check_gguf(expanded(name))
        return
    folder = model_folder(name) if is_local(name) else base_folder(name, revision)
    if folder is None:
        return
    _check_beside(folder)
    quantisation_of(_configuration(folder), name)  # refuses what it does not know
    weights = weight_files(folder, complete=is_local(name))
    if is_local(name) and not weights and "auto_map" not in _configuration(folder):
        raise _no_weights(folder)
    for path in weights:
        check_weights(path)
        if path.suffix != ".safetensors" and is_local(name) and not allow_pickle:
            raise pickled(name, path.name)


def _check_beside(folder: Path) -> None:
    """Look at the files beside the weights that loading reads."""
    for file in sorted(READ):
        path = folder / file
        if not path.is_file():
            continue
        if file not in MAY_BE_EMPTY:
            check_file(path)
        if file in TABLES:
            check_table(path)
        if file in TEXTS:
            read_text(path, kind=ModelError)
    check_layers(_configuration(folder), folder / "config.json")


def reading(allow_pickle: bool) -> dict[str, Any]:
    """Arguments of `from_pretrained` that keep it from reading pickles, or from running them.

    It prefers safetensors where a model has both. Nobody is asked to convert a model's files.
    """
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    return {"use_safetensors": None if allow_pickle else True, "weights_only": True}


def pickled(name: str, file: str) -> ModelError:
    """The error for weights that are pickles."""
    return ModelError(
        f"{name} has its weights as pickles only ({file}), which can run code when they are read.",
        remedy="Take a model with safetensors files; or pass --allow-pickle, which takes nothing "
        "but tensors from them.",
    )


def check_adapter_weights(adapter: Adapter, allow_pickle: bool) -> None:
    """Refuse an adapter on the Hub whose weights are pickles, which PEFT would take.

    Raises:
        ModelError: They are.
    """
    from huggingface_hub import file_exists, try_to_load_from_cache

    if allow_pickle or is_local(adapter.place):
        return
    place, revision = adapter.place, adapter.revision
    cached = try_to_load_from_cache(place, ADAPTERS[0], revision=revision)
    if not isinstance(cached, str) and not file_exists(place, ADAPTERS[0], revision=revision):
        raise pickled(place, ADAPTERS[1])


def weight_files(folder: Path, *, complete: bool = True) -> list[Path]:
    """The weight files that loading the folder reads; empty if there are none.

    Args:
        complete: Whether all of them must be there. A model in the Hub's cache may have been
            downloaded in part, and the rest follows when it is loaded.

    Raises:
        ModelError: An index names files that are not there.
    """
    named = _configuration(folder).get("transformers_weights")  # few name it
    own = (named,) if isinstance(named, str) else (*SAFETENSORS, *PICKLES)
    names = ADAPTERS if (folder / ADAPTER_CONFIG).is_file() else own
    for name in names:
        if (folder / name).is_file():
            return _shards(folder / name, complete) if name.endswith(".json") else [folder / name]
    return []


def _configuration(folder: Path) -> dict[str, Any]:
    """The content of config.json; empty if it cannot be read, which loading tells."""
    try:
        config = read_json(folder / "config.json", strict=False)
    except HereticError:
        return {}
    return config if isinstance(config, dict) else {}


def _shards(index: Path, complete: bool) -> list[Path]:
    check_file(index)
    content = read_json(index, kind=ModelError, strict=False, remedy="Download it again.")
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise ModelError(f"{index} does not say which file holds which weights.")
    names = sorted(set(table.values()))
    outside = next((name for name in names if not stays_inside(name)), None)
    if outside is not None:
        raise ModelError(
            f"{index} names {outside}, which is outside the model's folder.",
            remedy="Download the model again.",
        )
    files = [index.parent / name for name in names]
    absent = [file.name for file in files if not file.is_file()]
    if absent and complete:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise ModelError(
            f"{index} names {absent[0]}{more}, which {'is' if not more else 'are'} not there.",
            remedy="Download the model again.",
        )
    return [file for file in files if file.is_file()]


def check_table(path: Path) -> None:
    """Refuse a file that does not hold a JSON object.

    Raises:
        ModelError: It does not.
    """
    remedy = "Mend it, or download it again."
    content = read_json(path, kind=ModelError, strict=False, remedy=remedy)
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object.", remedy=remedy)


def check_weights(path: Path) -> None:
    """Refuse a weight file that is not what its name says, or is cut off.

    Raises:
        ModelError: It is.
    """
    check_file(path)
    again = "Download the model again."
    if path.suffix == ".safetensors":
        try:
            safetensors_header(path)
        except (ValueError, OSError) as error:
            raise ModelError(
                f"{path} is not a whole safetensors file: {error}.", remedy=again
            ) from error
    else:
        start = _start(path, 4)
        if not start.startswith(PICKLE_STARTS):
            raise ModelError(f"{path} is not a weight file of PyTorch.", remedy=again)
        if start.startswith(b"PK") and not zipfile.is_zipfile(path):
            raise ModelError(f"{path} is cut off: the end of the archive is missing.", remedy=again)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Name the file that is the cause of what readers raise: a GGUF file, or a vocabulary.

    The whole file is looked at only after a failure, since that takes seconds.

    Raises:
        ModelError: In place of an error, if the file is not whole.
    """
    try:
        yield
    except Exception as error:
        if not is_local(name):
            raise
        if gguf_parts(name) is None:
            for file in ("tokenizer.json", "vocab.json"):
                if (expanded(name) / file).is_file():
                    check_table(expanded(name) / file)
            raise
        from gguf import GGUFReader

        path = expanded(name)
        try:
            GGUFReader(path)
        except Exception:  # its reader raises whatever the missing bytes lead to
            raise ModelError(
                f"{path} is not a whole GGUF file.", remedy="Download it again."
            ) from error
        raise


def _start(path: Path, count: int) -> bytes:
    with path.open("rb") as reader:
        return reader.read(count)


def _no_weights(folder: Path) -> ModelError:
    shards = sorted(path.name for path in folder.glob("*-of-*.safetensors"))
    if shards:
        return ModelError(
            f"{folder} holds {shards[0]}, but no {SAFETENSORS[1]}, which lists all files.",
            remedy="Download the model again.",
        )
    return ModelError(
        f"{folder} holds a configuration, but no weights ({SAFETENSORS[0]}).",
        remedy="Download the model again; weights in other formats have to be converted.",
    )
