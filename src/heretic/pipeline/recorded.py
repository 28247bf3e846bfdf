"""The settings of a run that was searched before: what its folder says, and what its user says.

A run folder may come from anybody. It says which model, prompts and method were searched, which are
checked by their digests; what is done with them, and where to, is said by the user of the command.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from heretic.errors import RunError, SettingsError
from heretic.system.files import expanded
from heretic.system.secrets import MASK, masked_options

if TYPE_CHECKING:
    from heretic.config.schema import SettingsLayer
    from heretic.config.settings import Settings
    from heretic.runs.manifest import RunManifest

_SETS = (
    "good_prompts",
    "bad_prompts",
    "good_evaluation_prompts",
    "bad_evaluation_prompts",
    "protected_prompts",
)

_PLACES = {"model", "model_commit", "scorers", *_SETS}
"""Settings of a run that may name another place, as long as the same is found there."""

_BY_CONTENT = {"model", "prompts", "scorer", "scorers"}
"""Parts of a fingerprint that are compared elsewhere: by content, or after plugins are loaded."""


def run_settings(
    manifest: RunManifest, layers: Sequence[SettingsLayer], *, judged: bool = False
) -> Settings:
    """The settings of the search, overridden by what the user sets now that changes no score.

    A new place of the model, of prompts or of a scorer file is taken as well, if the content is the
    same.

    Args:
        layers: What the user sets, the highest first: on the command line, in the environment and
            in TOML, as always.
        judged: Whether replies will be judged. Then the addresses of judges have to be said again.

    Raises:
        SettingsError: An option or the file of `--config` would make it another run, a judge's
            address is not said, or as `check_consent`.
        RunError: The model is not the one that was searched, or the manifest contradicts itself.
    """
    from heretic.config.consent import check_consent
    from heretic.config.nested import merged
    from heretic.config.presets import is_file
    from heretic.config.schema import reproducible_names, run_names, values_as_before
    from heretic.config.settings import Settings
    from heretic.config.sources import merged_layers

    fixed = reproducible_names()
    own_layers = [replace(layer, values=_less(layer.values, fixed)) for layer in layers]
    own = Settings.from_layers(own_layers)
    check_consent(own, own_layers)
    said = {name: value for name, value in manifest.settings.items() if name in run_names()}
    if is_file(str(said.get("preset", ""))):  # what it has set is among the settings already
        del said["preset"]
    mine = {name: own.to_dict()[name] for name in own.model_fields_set}
    recorded = {**values_as_before(), **said, **mine}
    command = merged_layers(layer for layer in layers if layer.of_command)
    asked = {name: value for name, value in command.items() if name in fixed}
    _check_same_run(recorded, asked, fixed - _PLACES)
    below = merged(_without_addresses(recorded), {"scorer": _addresses(layers, recorded)})
    settings = _with_commit(Settings.restore(merged(below, asked)), manifest)
    _check_content(settings, manifest, scorers=judged or "scorers" in asked)
    if judged:
        _check_addresses(settings, recorded)
    return settings


def _less(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def check_prompts_are_here(settings: Settings) -> None:
    """Say which files of prompts are missing, and how to name another place.

    Raises:
        RunError: A file or folder of prompts does not exist.
    """
    from heretic.config.schema import option_name
    from heretic.config.tables import each_of
    from heretic.prompts import FILE_FORMATS
    from heretic.system.hub import is_local

    for name in _SETS:
        prompts = getattr(settings, name)
        parts = () if prompts is None else each_of(prompts)
        for place in (part.dataset for part in parts):
            path = expanded(place)
            is_path = is_local(place) or path.suffix.lower() in FILE_FORMATS
            if is_path and not path.exists():
                how = f"{option_name(name, 'dataset')} PATH"
                if len(parts) > 1:
                    how = f"all {len(parts)} data sets, as [[{name}]] in the file of --config"
                raise RunError(
                    f"The {name.replace('_', ' ')} of the run were in {place}, which is not here.",
                    remedy=f"Say where they are: {how}. Their content is checked.",
                )


def _check_same_run(
    recorded: Mapping[str, Any], asked: Mapping[str, Any], names: Collection[str]
) -> None:
    from heretic.config.nested import merged
    from heretic.config.settings import Settings

    def compared(settings: Settings) -> dict[str, Any]:
        values = {name: getattr(settings, name) for name in names}
        tables = settings.scorer.items()
        # Which variable holds a judge's key changes no verdict, and secrets are not recorded.
        less = {name: {k: v for k, v in of.items() if k != "api_key_env"} for name, of in tables}
        return {**values, "scorer": {name: masked_options(of) for name, of in less.items()}}

    if compared(Settings.restore(merged(recorded, asked))) != compared(Settings.restore(recorded)):
        raise SettingsError(
            "These options belong to another run.",
            remedy="Leave out what the run was not searched with, or search again.",
        )


def _with_commit(settings: Settings, manifest: RunManifest) -> Settings:
    """The settings with the commit that was searched: a branch on the Hub moves on."""
    commit = str(manifest.fingerprint["model"]).partition("@")[2]
    return (
        settings.replaced(model_commit=commit)
        if commit and settings.model_commit is None
        else settings
    )


def _check_content(settings: Settings, manifest: RunManifest, *, scorers: bool) -> None:
    """Compare model, method and, where they are loaded, scorer files with the run's digests."""
    known = manifest.fingerprint
    now = settings.fingerprint()
    if now["model"] != known["model"]:
        here = expanded(settings.model).exists()
        missing = str(known["model"]).startswith("sha256:") and not here
        raise RunError(
            f"The run was searched on {settings.model}, which is not here."
            if missing
            else f"{settings.model} is not the model that was searched, or has changed since.",
            remedy="Say where that is: --model, and for a Hub id --model-commit. Its content is "
            "checked.",
        )
    changed = sorted(
        name
        for name in {*now, *known} - _BY_CONTENT
        if name not in now or name not in known or now[name] != known[name]
    )
    if changed:
        raise RunError(
            f"The run's manifest contradicts itself: {', '.join(changed)} in its settings is not "
            "what was searched with.",
            remedy="Restore the manifest from a copy, or search again.",
        )
    if scorers and now["scorers"] != known.get("scorers"):
        named = ", ".join(scorer.plugin for scorer in settings.scorers)
        raise RunError(
            f"The scorers ({named}) are not those of the search: a file is missing or has changed.",
            remedy="Restore it, or say where each scorer is: --scorers JSON, once for each.",
        )


def _without_addresses(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without where a scorer sends replies, and with which key."""
    from heretic.config.tables import SENDING_OPTIONS

    tables = {
        name: {key: value for key, value in options.items() if key not in SENDING_OPTIONS}
        for name, options in recorded.get("scorer", {}).items()
    }
    return {**recorded, "scorer": tables}


def _addresses(
    layers: Sequence[SettingsLayer], recorded: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Where the user lets the run's scorers send replies, by the scorer's name."""
    from heretic.config.sources import merged_layers
    from heretic.config.tables import SENDING_OPTIONS

    tables = merged_layers(layer for layer in layers if layer.consents).get("scorer")
    if not isinstance(tables, Mapping):
        return {}
    return {
        name: {key: options[key] for key in SENDING_OPTIONS if key in options}
        for name, options in tables.items()
        if name in recorded.get("scorer", {}) and isinstance(options, Mapping)
    }


def _check_addresses(settings: Settings, recorded: Mapping[str, Any]) -> None:
    """Ask for the addresses of judges, which a run may not decide, and for secrets, which it lacks.

    Raises:
        SettingsError: One of them is not said.
    """
    from heretic.config.schema import option_name
    from heretic.config.tables import SENDING_OPTIONS

    for name, given in recorded.get("scorer", {}).items():
        options = masked_options(given)
        endpoint = options.get("endpoint")
        if endpoint and not settings.scorer[name].get("endpoint"):
            said = " ".join(
                f"{option_name('scorer', name, key)} {shlex.quote(str(options[key]))}"
                for key in SENDING_OPTIONS
                if options.get(key)
            )
            raise SettingsError(
                f"The run's scorer {name} sends replies to {endpoint}, which only you can allow.",
                remedy=f"If you trust that address, say so by {said}, or by --config with the "
                "file that the run was searched with.",
            )
        if MASK in json.dumps(settings.scorer[name]):
            raise SettingsError(
                f"The options of the run's scorer {name} held a secret, which was not recorded.",
                remedy="Give them again: --config with the file that the run was searched with, or "
                f"--scorer.{name}.OPTION VALUE.",
            )
