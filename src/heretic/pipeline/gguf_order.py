"""What GGUF files are to be made, and whether they can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from heretic.config.settings import Settings
from heretic.errors import ExportError
from heretic.export.files import check_disk
from heretic.export.staging import contents, prove, recover, resolved
from heretic.gguf.bindings import bindings
from heretic.gguf.convert import converter_tree, lossless_type
from heretic.gguf.documents import holds_only_ours
from heretic.gguf.file_types import FileType, file_types
from heretic.gguf.sizes import needed_bytes
from heretic.gguf.staging import check_tokenizer_without_code
from heretic.model.source import ModelSource

LESS_ROOM = "Free some space, choose another folder, or ask for fewer or smaller types."


@dataclass(frozen=True, slots=True)
class GGUFOrder:
    """What is to be made.

    Attributes:
        kinds: Types of the files.
        destination: Folder of the files.
        keep_original: Whether the original's files stay, beside the others.
    """

    kinds: tuple[FileType, ...]
    destination: Path
    keep_original: bool = False


def order_of(settings: Settings, destination: Path) -> GGUFOrder:
    """What the setting `gguf_types` asks for.

    Raises:
        ExportError: It names a type that llama.cpp does not have.
    """
    return GGUFOrder(file_types(settings.gguf_types), destination)


def check_order(order: GGUFOrder, folder: Path, *, original: bool, trusted: bool) -> Path:
    """Check before any work that the files can be made; see `heretic.gguf`.

    Args:
        original: Whether the original is converted too.
        trusted: Whether code that comes with the model may run.

    Returns:
        The destination, absolute.

    Raises:
        ExportError: A package is missing, the destination is taken, the disk is too small, or the
            tokenizer works only with code that nobody has allowed to run.
    """
    bindings()
    converter_tree()
    destination = resolved(order.destination)
    recover(destination)
    if destination.exists() and not destination.is_dir():
        raise ExportError(f"{destination} is a file.", remedy="Name a folder.")
    if destination.is_dir() and contents(destination) and not holds_only_ours(destination):
        raise ExportError(
            f"{destination} is not empty and holds files that Heretic did not make there.",
            remedy="Choose another folder (-o), or empty this one.",
        )
    prove(destination)
    unquantised = lossless_type(folder)
    needed = needed_bytes(
        folder, order.kinds, unquantised, original=original, kept=order.keep_original
    )
    check_disk(destination, needed, LESS_ROOM)
    check_tokenizer_without_code(
        ModelSource(model=str(folder), model_commit=None, trust_remote_code=trusted)
    )
    return destination
