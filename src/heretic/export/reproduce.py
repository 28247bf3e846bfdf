"""Make a saved model again from its `reproduce.json`, and compare the weight files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.config.nested import merged
from heretic.config.schema import reproducible_names, values_as_before
from heretic.config.tables import SCORERS, is_own_plugin
from heretic.errors import ExportError, SettingsError
from heretic.events import Notice, Reporter
from heretic.export.documents.places import found_again
from heretic.export.documents.reproduction import Reproduction, differences, directions_hash
from heretic.export.documents.write import rewrite_scores
from heretic.export.files import check_destination, inventory
from heretic.export.request import ExportOptions, ExportRequest
from heretic.export.saving import save
from heretic.model.fits import read_fits
from heretic.records.options import options_of
from heretic.records.trial import Trial
from heretic.runs.manifest import RunManifest
from heretic.system.machine import hardware, versions

if TYPE_CHECKING:
    from torch import Tensor

    from heretic.config.settings import Settings
    from heretic.model.core import Model

Prepare = Callable[["Settings", int, Reporter, datetime | None], "tuple[Model, Tensor]"]
"""The pipeline's first stages: (settings, seed, reporter, date) -> (loaded model, directions)."""

UNSCORED = "This copy was not scored; `heretic evaluate` scores it."

_SENDING = SCORERS["llm_judge"].partition(":")[0]
"""Module of the judges, which may send replies and a key to an address that the settings name."""


@dataclass(frozen=True, slots=True)
class ReproductionResult:
    """How a reproduction went.

    Attributes:
        folder: Where the model was saved.
        matching: Weight files with the recorded hash.
        differing: Weight files whose hash differs, or that only one side has.
        same_directions: Whether the directions equal the original's bit for bit.
        changes: Versions and hardware that differ from the recorded ones, as `differences` gives
            them.
    """

    folder: Path
    matching: tuple[str, ...]
    differing: tuple[str, ...]
    same_directions: bool
    changes: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether every weight file has the recorded hash."""
        return bool(self.matching) and not self.differing

    def summary(self) -> str:
        """The outcome in one line."""
        if self.identical:
            return f"Identical: all {len(self.matching)} weight files have the recorded hashes."
        what = f"Not identical: {', '.join(self.differing)} differ from the recorded hashes"
        if self.changes:
            return f"{what}. Not as recorded: {'; '.join(self.changes)}. {UNSCORED}"
        where = "the directions differ too" if not self.same_directions else "the directions agree"
        return f"{what}; {where}. Versions and hardware are as recorded. {UNSCORED}"


def reproduce(
    file: Path,
    destination: Path,
    *,
    prepare: Prepare,
    reporter: Reporter,
    trust_plugins: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> ReproductionResult:
    """Make the model of a `reproduce.json` again and compare the weight files' hashes.

    Args:
        file: The `reproduce.json`, or the folder that holds one.
        destination: Where the model is saved.
        prepare: `pipeline.prepare_directions`.
        trust_plugins: Whether the file may name judges, and scorers from outside Heretic.
        overrides: The user's settings, which take precedence over the file's, such as
            `trust_remote_code`, which no file can set, or another path of `model`.

    Raises:
        ExportError: The file cannot be read, sets something that it may not, names local files that
            are not found, or saving fails.
    """
    if file.is_dir():
        file = file / "reproduce.json"
    recorded = Reproduction.read(file)
    check_plugins(recorded.settings, "reproduction file", trust_plugins)
    overrides = overrides or {}
    restored_settings(recorded, overrides)  # what it may not set is said first
    there = found_again(recorded.settings, recorded.places, overrides, file.absolute().parent)
    settings = restored_settings(replace(recorded, settings=there), overrides)
    destination = check_destination(destination, settings.model)
    changes = differences(recorded.versions, versions())
    if changes:
        reporter.emit(
            Notice(f"Versions are not as recorded: {'; '.join(changes)}.", level="warning")
        )
    fits = read_fits([recorded.plan], file.absolute().parent)
    model, directions = prepare(settings, recorded.seed, reporter, recorded.date)
    model.add_fits(fits)
    # No scores at first: those in the file hold for this copy only if its weights are identical.
    request = ExportRequest(
        trial=Trial(number=recorded.trial, plan=recorded.plan, scores=()),
        directions=directions,
        baseline=(),
        manifest=_manifest(recorded, settings.model),
        options=options_of(ExportOptions, settings),
        settings=settings.to_dict(),
    )
    save(model, request, destination, strategy=recorded.strategy, reporter=reporter)
    outcome = _compare(recorded, destination, directions, [
        *changes, *differences(recorded.hardware, hardware(model.device))
    ])  # fmt: skip
    if outcome.identical:
        rewrite_scores(destination, _with_figures(request, recorded))
    level = "success" if outcome.identical else "warning"
    reporter.emit(Notice(outcome.summary(), level=level))
    return outcome


def check_plugins(settings: Mapping[str, Any], where: str, trust_plugins: bool = False) -> None:
    """Refuse scorers that would run code from outside Heretic, or send what they read elsewhere.

    Args:
        settings: As recorded, not yet validated.
        where: What recorded them, for the message, such as `reproduction file`.

    Raises:
        ExportError: They name such a scorer, and `trust_plugins` is false.
    """
    scorers = settings.get("scorers", [])
    if not isinstance(scorers, list):
        raise ExportError(f"The scorers in the {where} are not a list.")
    foreign = [plugin for plugin in map(_plugin, scorers) if not is_own_plugin(plugin)]
    if trust_plugins:
        return
    if foreign:
        raise ExportError(
            f"The {where} names scorers from outside Heretic: {', '.join(foreign)}.",
            remedy="Such scorers run code of their own. Read it, then pass --trust-plugins.",
        )
    if any(_plugin(scorer).partition(":")[0] == _SENDING for scorer in scorers):
        raise ExportError(
            f"The {where} names a judge: it would be sent replies and a key, or be loaded here.",
            remedy="Check its endpoint, api_key_env and model, then pass --trust-plugins.",
        )


def _plugin(scorer: Any) -> str:
    return str(scorer.get("plugin")) if isinstance(scorer, Mapping) else str(scorer)


def restored_settings(recorded: Reproduction, overrides: Mapping[str, Any]) -> Settings:
    """The original's settings, with the values found at run time pinned.

    Nothing is read from the environment or from TOML: a reproduction must not depend on them.

    Raises:
        ExportError: The file sets something that it may not, or its settings are not valid.
    """
    from heretic.config.settings import Settings

    forbidden = sorted(set(recorded.settings) - reproducible_names())
    if forbidden:
        raise ExportError(
            f"A reproduction file cannot set {', '.join(forbidden)}.",
            remedy="Remove these lines from it if you trust the rest.",
        )
    try:
        pinned: dict[str, Any] = {
            "seed": recorded.seed,
            "max_shard_size": recorded.max_shard_size,
            "batch_size": recorded.found["batch_size"],
            "response_prefix": recorded.found["response_prefix"],
            "dtypes": [recorded.found["dtype"]],
        }
        below = {**values_as_before(), **recorded.settings, **pinned}
        return Settings.restore(merged(below, overrides))
    except (SettingsError, KeyError) as error:
        raise ExportError(
            f"The settings in the reproduction file are not valid: {error}"
        ) from error


def _manifest(recorded: Reproduction, model: str) -> RunManifest:
    """A manifest of the original run, with what the file records."""
    return RunManifest(
        model=model,
        digest="",
        seed=recorded.seed,
        fingerprint={},
        settings={},
        found=dict(recorded.found),
    )


def _with_figures(request: ExportRequest, recorded: Reproduction) -> ExportRequest:
    return replace(
        request,
        trial=replace(request.trial, scores=recorded.after),
        baseline=recorded.before,
        verified=recorded.after if recorded.verified else None,
        as_recorded=True,
    )


def _compare(
    recorded: Reproduction, folder: Path, directions: Tensor, changes: list[str]
) -> ReproductionResult:
    then = recorded.weight_hashes()
    now = {name: entry["sha256"] for name, entry in inventory(folder).items() if name in then}
    extra = set(_weights(folder)) - set(then)
    matching = tuple(sorted(name for name in then if now.get(name) == then[name]))
    return ReproductionResult(
        folder=folder,
        matching=matching,
        differing=tuple(sorted((set(then) - set(matching)) | extra)),
        same_directions=directions_hash(directions) == recorded.directions_sha256,
        changes=tuple(changes),
    )


def _weights(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.safetensors")]
