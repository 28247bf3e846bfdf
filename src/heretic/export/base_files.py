"""Put the base's own files beside the saved weights, and say which of them could not be had."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.events import Notice, Reporter
from heretic.export import companions
from heretic.export.code_files import read_table
from heretic.export.companions import CONFIG, GENERATION_CONFIG
from heretic.export.documents.write import base_revision
from heretic.export.files import write_json
from heretic.export.request import Strategy
from heretic.export.safetensors.checkpoint import INDEX
from heretic.model.adapters import has_tokenizer
from heretic.system.hub import HUB_TIMEOUT, base_folder, gguf_parts, is_local

if TYPE_CHECKING:
    from heretic.export.safetensors.checkpoint import Checkpoint
    from heretic.model.core import Model


def write_base_files(
    model: Model,
    folder: Path,
    strategy: Strategy,
    source: Checkpoint | None = None,
    *,
    streamed: bool,
    reporter: Reporter,
) -> None:
    """Write tokenizer, configurations, code and licences beside weights that are in `folder`.

    Files are the base's own, to the byte. What it lacks, or holds as a link to somewhere else, is
    written from memory where a model needs it.

    Args:
        source: The base's safetensors files, if they were read.
        streamed: Whether the weights were copied from the base's files, under their names there.
    """
    adapter = model.options.adapter
    name, revision = model.options.model, base_revision(model)
    if adapter is not None:  # merged into its base, whose files belong to the result
        name, revision = adapter.base, adapter.base_revision
    on_hub = not is_local(name) and gguf_parts(name) is None
    missing = fetch(name, revision) if on_hub else None
    if missing is not None:
        reporter.emit(
            Notice(
                f"The Hub does not send the other files of {name} ({missing}): what is not in the "
                "cache, such as its licence or tokenizer.model, is missing beside the weights.",
                "warning",
            )
        )
    base = base_folder(name, revision)
    if base is None:
        _write_missing(model, folder, set(), with_generation=True)
        _say_alone(model, reporter)
        return
    named = tuple(getattr(model.tokenizer, "vocab_files_names", {}).values())
    found = companions.survey(base, companions.kinds(strategy), _read_files(base, source), named)
    known = set(found.known)
    if strategy == "merge" and not streamed and not _config_holds(base, folder):
        known.discard(CONFIG)
    # What transformers wrote beside weights from memory, or reads through a link, or would make up.
    lacks_generation = not streamed or GENERATION_CONFIG in found.outside
    _write_missing(model, folder, known, named, with_generation=lacks_generation)
    if streamed and CONFIG in found.outside:
        write_json(folder / CONFIG, read_table(base / CONFIG))
    unread = companions.copy(base, sorted(known), folder)
    if adapter is not None and has_tokenizer(adapter):
        write_tokenizer(model, folder)
    told = companions.Companions(
        weights=() if strategy == "adapter" else found.weights,
        foreign=found.foreign,
        outside=(*found.outside, *unread),
    ).left_out(base)
    if told is not None:
        reporter.emit(Notice(told))


def _say_alone(model: Model, reporter: Reporter) -> None:
    """Say that nothing lies beside the model's weights that could be copied."""
    reporter.emit(
        Notice(
            f"Only tokenizer and configuration are written beside the weights, since "
            f"{model.options.model} has no folder of its own on this machine: its licence is "
            "not copied"
        )
    )


def _read_files(base: Path, source: Checkpoint | None) -> set[str]:
    """Files of the base that hold the weights in memory, relative to its folder."""
    if source is None:
        patterns = ("model*.safetensors", INDEX, "pytorch_model*.bin*")
        return {path.name for pattern in patterns for path in base.glob(pattern)}
    index = set() if source.index is None else {INDEX}
    return {file.relative_to(base).as_posix() for file in source.files} | index


def _config_holds(base: Path, folder: Path) -> bool:
    """Whether the base's config.json describes weights that were saved from memory.

    It does not if those were quantised, or were saved in another dtype or class.
    """
    then, now = read_table(base / CONFIG), read_table(folder / CONFIG)
    return (
        "quantization_config" not in then
        and then.get("architectures") == now.get("architectures")
        and _dtype(then) == _dtype(now)
    )


def _dtype(config: dict[str, Any]) -> Any:
    return config.get("dtype", config.get("torch_dtype"))


def _write_missing(
    model: Model,
    folder: Path,
    known: set[str],
    named: tuple[str, ...] = (),
    *,
    with_generation: bool,
) -> None:
    """Write from memory what a model needs and the base's folder does not give."""
    if not companions.has_vocabulary(known, named):
        write_tokenizer(model, folder)
    if model.processor is not None and not known & set(companions.PROCESSOR_FILES):
        model.processor.save_pretrained(folder)
    config = getattr(model.model, "generation_config", None)
    if with_generation and config is not None and GENERATION_CONFIG not in known:
        # Not `save_pretrained`, which refuses what many published models have: a temperature
        # without `do_sample`.
        config.to_json_file(folder / GENERATION_CONFIG, keys_to_pop=["compile_config"])


def write_tokenizer(model: Model, folder: Path) -> None:
    """Write the tokenizer of the base model, or of the adapter that was given as the model.

    Heretic changes the tokenizer in memory: it pads on the left and may have a new pad token.
    Therefore it is read again.
    """
    from transformers import AutoTokenizer

    from heretic.model.loading import tokenizer_origin

    place, arguments = tokenizer_origin(model.options)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **arguments)
    except (OSError, ValueError):  # no longer on the disk or the Hub
        tokenizer = model.tokenizer
    tokenizer.save_pretrained(folder)


def fetch(name: str, revision: str | None) -> str | None:
    """Download the small files of a model on the Hub that are not in the cache yet.

    Args:
        name: Hub id.
        revision: The commit that the weights were loaded from.

    Returns:
        Why they could not be had, in a few words; None if they are all there.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache

    from heretic.model.loading import quiet

    if constants.HF_HUB_OFFLINE:
        return "offline mode"
    try:
        with quiet():
            info = HfApi().model_info(
                name, revision=revision, timeout=HUB_TIMEOUT, files_metadata=True
            )
            for file in info.siblings or ():
                wanted = companions.belongs_on_hub(file.rfilename, file.size or 0)
                cached = try_to_load_from_cache(name, file.rfilename, revision=revision)
                if wanted and not isinstance(cached, str):
                    hf_hub_download(name, file.rfilename, revision=revision)
    except Exception as error:  # no connection, gated, damaged: the export goes on without them
        return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return None
