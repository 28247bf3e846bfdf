"""What lets other programs run GGUF files as they lie there."""

from __future__ import annotations

from pathlib import Path

from heretic.export.code_files import read_table
from heretic.export.files import write_text
from heretic.gguf.chat_format import ChatFormat, chat_format
from heretic.gguf.modelfile import MODELFILE, modelfile
from heretic.gguf.results import Results
from heretic.model.library import LibraryModel
from heretic.pipeline.gguf_source import GGUFSource

GENERATION = "generation_config.json"


def write_modelfile(
    folder: Path,
    source: GGUFSource,
    model: LibraryModel,
    ends: frozenset[int],
    start: str,
    results: Results,
) -> None:
    """Write a Modelfile for the smallest of the files.

    Args:
        folder: Holds the files.
        model: The edited model in PyTorch; its weights are not needed.
        ends: Tokens that end a reply.
        start: Text of the token that llama.cpp puts at the beginning of a prompt; empty if none.

    Raises:
        ExportError: It cannot be written.
    """
    text = modelfile(
        results.smallest.file,
        results.name.lower(),
        _format(model, start),
        stops=sorted(model.tokenizer.convert_ids_to_tokens(sorted(ends))),
        generation=read_table(source.folder / GENERATION),
        system=source.settings.system_prompt,
    )
    write_text(folder / MODELFILE, text)


def _format(model: LibraryModel, start: str) -> ChatFormat | None:
    """How chats are rendered for llama.cpp."""
    renderer = model.renderer
    if not renderer.has_template or renderer.uses_clock:
        return None
    found = chat_format(lambda chat: renderer.text([dict(message) for message in chat]))
    return None if found is None else found.without_start(start)
