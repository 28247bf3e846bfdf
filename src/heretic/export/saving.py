"""Save a trial: weights or adapter, the other files of a model folder, and the documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from heretic.config.sizes import size_in_bytes
from heretic.errors import ExportError
from heretic.events import Notice, Reporter, Silent, StageFinished, StageStarted
from heretic.export import weights
from heretic.export.adapter import write_adapter
from heretic.export.base_files import write_base_files
from heretic.export.documents.write import write_documents
from heretic.export.files import check_destination, check_disk, relative_files
from heretic.export.request import ExportOptions, ExportRequest, Strategy, check_strategy
from heretic.export.safetensors import stream
from heretic.export.safetensors.packed import Rounded
from heretic.export.safetensors.sources import QuantisedSourceError, StreamError
from heretic.export.staging import staged
from heretic.system.adapters import Adapter, find_adapter
from heretic.system.hub import base_folder

if TYPE_CHECKING:
    from torch import Tensor

    from heretic.export.safetensors.checkpoint import Checkpoint
    from heretic.model.core import Model
    from heretic.records.plan import Plan

ADAPTER_BYTES = 16 * 2**20
"""Upper bound of an adapter's size in bytes, for each of its ranks."""


LOST = 0.25
"""Share of an edit whose loss by rounding is a warning."""


def check_place(options: ExportOptions, destination: Path, strategy: str) -> None:
    """Check like `check_export`, but before the model is loaded.

    The space needed is the size of the base's weight files, if they are on this machine.

    Raises:
        ExportError: The destination is taken or the disk too small.
    """
    kind = check_strategy(strategy)
    if kind == "adapter":
        _check_base(find_adapter(options.model, options.model_commit))
    destination = check_destination(destination, options.model)
    needed = ADAPTER_BYTES * options.max_rank
    if kind == "merge":
        base = base_folder(options.model, options.model_commit)
        files = base.glob("*.safetensors") if base is not None else ()
        needed = sum(path.stat().st_size for path in files)
    check_disk(destination, needed)


def check_export(model: Model, destination: Path, strategy: str, max_rank: int) -> None:
    """Check before the work starts that the result can be saved.

    Args:
        max_rank: Largest rank of an adapter.

    Raises:
        ExportError: The destination is taken or the disk too small.
    """
    kind = check_strategy(strategy)
    if kind == "adapter":
        _check_base(model.options.adapter)
    _check_room(model, destination, kind, _source(model, kind), max_rank)


def _check_base(adapter: Adapter | None) -> None:
    """Refuse an adapter of an adapter: programs load an adapter on a whole model only."""
    if adapter is not None:
        raise ExportError(
            f"{adapter.place} is itself an adapter, so an adapter of the edited model would have "
            "no base.",
            remedy="Save merged weights (--export-strategy merge).",
        )


def _source(model: Model, strategy: Strategy) -> Checkpoint | None:
    """The base's weight files, if the saved weights can be copied from them."""
    return stream.source_of(model) if strategy == "merge" else None


def _check_room(
    model: Model, destination: Path, strategy: Strategy, source: Checkpoint | None, rank: int
) -> Path:
    """The folder that the destination means, once it is known to be free and large enough."""
    destination = check_destination(destination, model.options.model)
    needed = ADAPTER_BYTES * rank
    if strategy == "merge":
        needed = weights.estimated_bytes(model) if source is None else source.size
    check_disk(destination, needed)
    return destination


def save(
    model: Model,
    request: ExportRequest,
    destination: Path,
    *,
    strategy: str,
    max_shard_size: str | int | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Save a trial as an ordinary model folder.

    The files appear at `destination` all at once or not at all. An earlier export there is
    replaced. The documents show the search's scores until `verify` has measured the files.

    Args:
        model: The unedited model; it is unedited afterwards too.
        strategy: `merge` (whole weights) or `adapter` (for PEFT; exact, a few megabytes at most).
        max_shard_size: Largest weight file, by default the setting of that name. It applies only
            to weights saved from memory: copies of the base's files keep the base's shards.

    Returns:
        The absolute path of the folder, with `~` and links followed.

    Raises:
        ExportError: The destination is taken, the disk too small, the shard size none, the model
            edited already, or writing fails.
    """
    reporter = reporter or Silent()
    kind = check_strategy(strategy)
    if model.is_edited:
        raise ExportError(
            "The model in memory is edited already.", remedy="Call restore() before saving a plan."
        )
    source = _source(model, kind)
    shard = max_shard_size or request.options.max_shard_size
    _check_shard_size(shard)
    destination = _check_room(model, destination, kind, source, request.trial.plan.rank)
    reporter.emit(StageStarted(f"Saving to {destination}"))
    with staged(destination) as folder:
        _write_model(
            model,
            request,
            folder,
            strategy=kind,
            source=source,
            max_shard_size=shard,
            reporter=reporter,
        )
        write_documents(folder, request, kind, model)
        files = relative_files(folder)
    reporter.emit(StageFinished(f"{len(files)} files in {destination}"))
    return destination


def _check_shard_size(size: str | int) -> None:
    """Refuse what is no size.

    Raises:
        ExportError: It is none.
    """
    try:
        size_in_bytes(size if isinstance(size, str) else f"{size / 1000:f}KB")
    except ValueError as error:
        raise ExportError(f"max_shard_size is {size!r}: it {error}.") from error


def _write_model(
    model: Model,
    request: ExportRequest,
    folder: Path,
    *,
    strategy: Strategy,
    source: Checkpoint | None,
    max_shard_size: str | int,
    reporter: Reporter,
) -> None:
    plan, directions = request.trial.plan, request.directions
    if strategy == "adapter":
        write_adapter(model, plan, directions, folder)
        write_base_files(model, folder, strategy, streamed=False, reporter=reporter)
        return
    if not model.plan_edits(plan, directions):
        reporter.emit(Notice("The plan edits nothing: the saved model is the base.", "warning"))
    edits = None if source is None else _streamable(model, source, plan, directions, reporter)
    if source is not None and edits is not None:
        rounded = stream.write_streamed(source, edits, folder, reporter)
        if rounded.weights:
            reporter.emit(
                Notice(_rounding(rounded), "warning" if rounded.missing > LOST else "info")
            )
        write_base_files(model, folder, strategy, source, streamed=True, reporter=reporter)
        return
    check_disk(folder, weights.estimated_bytes(model))
    with weights.as_stored(model, reporter) as full:
        weights.write_merged(full, plan, directions, folder, max_shard_size)
    if model.options.is_gguf:
        kind = str(full.dtype).removeprefix("torch.")
        reporter.emit(Notice(f"The weights of the GGUF file are saved as {kind}"))
    write_base_files(model, folder, strategy, source, streamed=False, reporter=reporter)


def _rounding(rounded: Rounded) -> str:
    """What packing edited weights in the base's own format has changed, in a sentence."""
    return (
        f"{rounded.weights} edited weights were packed in the base's own format, which rounds them "
        f"by {rounded.relative:.2%} (root mean square) and undoes {rounded.missing:.1%} of the "
        "edit along its directions; all other tensors are the base's, to the byte"
    )


def _streamable(
    model: Model, source: Checkpoint, plan: Plan, directions: Tensor, reporter: Reporter
) -> list[stream.TensorEdit] | None:
    """Edits of the tensors in the base's files; None if weights must be saved from memory.

    Raises:
        QuantisedSourceError: The base is quantised, both in memory and on the disk.
    """
    edits = stream.parameter_edits(model, plan, directions)
    try:
        return stream.tensor_edits(model.model, source, edits)
    except StreamError as error:
        quantised = isinstance(error, QuantisedSourceError)
        if quantised and not weights.is_full_precision(model, [edit.name for edit in edits]):
            raise
        reporter.emit(Notice(f"Saving from memory: {error.message}"))
        return None
