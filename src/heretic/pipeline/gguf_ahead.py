"""Ask before a search whether llama.cpp will take the model at its end."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from heretic.config.settings import Settings
from heretic.errors import ExportError, SettingsError
from heretic.export.files import check_disk
from heretic.export.safetensors.checkpoint import read_checkpoint
from heretic.gguf.bindings import bindings
from heretic.gguf.convert import convert_vocabulary, lossless_type
from heretic.gguf.file_types import file_types
from heretic.gguf.llama import LlamaFile
from heretic.gguf.sizes import needed_bytes
from heretic.gguf.staging import check_tokenizer_without_code, converter_copy
from heretic.model.source import ModelSource
from heretic.pipeline.gguf_order import LESS_ROOM
from heretic.records.options import options_of
from heretic.system.hub import base_folder, gguf_parts


def check_gguf_ahead(settings: Settings) -> None:
    """Check that the edited model can become a GGUF file: types, architecture, tokenizer.

    The model's vocabulary is converted and loaded, which takes seconds; no weights are read.
    Nothing is asked about a model that is not on this machine yet, or that is a GGUF file itself.

    Raises:
        ExportError: A package is missing, the disk is too small, a type is unknown, llama.cpp does
            not know the architecture or the tokenizer, or the tokenizer needs code that nobody
            allowed to run.
        SettingsError: GGUF files are to be uploaded.
        ModelError: The library of llama.cpp is older than the converter.
    """
    bindings()
    file_types(settings.gguf_types)
    if settings.model_action == "upload":
        raise SettingsError(
            "GGUF files are not uploaded.", remedy="Set model_action to save, or another strategy."
        )
    if gguf_parts(settings.model) is not None:
        return
    folder = base_folder(settings.model, settings.model_commit)
    if folder is None or not any(folder.glob("*.safetensors")):
        return
    check_tokenizer_without_code(options_of(ModelSource, settings))
    _check_room(settings, folder)
    try:
        with TemporaryDirectory(prefix="heretic-gguf-") as place:
            file = Path(place) / "vocabulary.gguf"
            with converter_copy(folder, Path(place), trusted=settings.trust_remote_code) as staged:
                convert_vocabulary(staged, file)
            LlamaFile(file, vocabulary_only=True).close()
    except OSError as error:
        raise ExportError(
            f"A copy of the tokenizer cannot be written: {error.strerror or error}.",
            remedy="Free some space in the temporary folder (TMPDIR).",
        ) from error


def _check_room(settings: Settings, folder: Path) -> None:
    """Check the disk for the edited weights and all GGUF files.

    Args:
        folder: The original.

    Raises:
        ExportError: It is too small.
    """
    if settings.save_directory is None or read_checkpoint(folder) is None:
        return
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    kinds = file_types(settings.gguf_types)
    files = needed_bytes(folder, kinds, lossless_type(folder), original=True, kept=False)
    check_disk(settings.save_directory, weights + files, LESS_ROOM)
