"""What lets other programs run GGUF files as they lie there."""

from __future__ import annotations

from pathlib import Path

from heretic.errors import ExportError
from heretic.export.files import write_text
from heretic.gguf.chat_format import ChatFormat, chat_format
from heretic.gguf.llama import LlamaFile
from heretic.gguf.modelfile import MODELFILE, modelfile
from heretic.gguf.results import Results
from heretic.model.library import LibraryModel
from heretic.pipeline.gguf_source import GGUFSource
from heretic.system.documents import read_json

GENERATION = "generation_config.json"


def write_modelfile(
    folder: Path, source: GGUFSource, model: LibraryModel, results: Results
) -> None:
    """Write a Modelfile for the smallest of the files.

    Args:
        folder: Holds the files.
        model: The edited model in PyTorch; its weights are not needed.

    Raises:
        ExportError: It cannot be written.
    """
    file = min(results.files, key=lambda made: made.size).file
    path = source.folder / GENERATION
    generation = read_json(path, kind=ExportError) if path.is_file() else {}
    own = generation.get("eos_token_id")
    ends = {*(own if isinstance(own, list) else [own]), model.tokenizer.eos_token_id} - {None}
    text = modelfile(
        file,
        results.name.lower(),
        _format(model, folder / file),
        stops=sorted(model.tokenizer.convert_ids_to_tokens(sorted(ends))),
        generation=generation,
        system=source.settings.system_prompt,
    )
    write_text(folder / MODELFILE, text)


def _format(model: LibraryModel, file: Path) -> ChatFormat | None:
    """How chats are rendered for llama.cpp, which may put the first token there itself."""
    renderer = model.renderer
    if not renderer.has_template or renderer.uses_clock:
        return None
    found = chat_format(lambda chat: renderer.text([dict(message) for message in chat]))
    with LlamaFile(file) as opened:
        start = opened.added_start
    return found if found is None or not start else found.without_start(start)
