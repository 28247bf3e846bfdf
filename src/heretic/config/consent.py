"""Consent: what lets code of others run, or sends data away, has to be said by the user.

A `config.toml` or `.env` that lies in the working directory may come from anybody, as a folder that
was downloaded or cloned does. It sets everything else, but it gives no consent. Neither does a
preset, nor a behaviour that such a file names.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heretic.config.fields.all import SettingsFields
from heretic.config.schema import SettingsLayer, option_name, settings_of
from heretic.config.tables import SENDING_OPTIONS, ScorerSpecification, is_own_plugin
from heretic.errors import SettingsError
from heretic.system.secrets import masked, masked_options


@dataclass(frozen=True, slots=True)
class _Consent:
    """A value that counts only where the user gave it.

    Attributes:
        path: Where it stands among the settings.
        option: What gives it on the command line.
    """

    path: tuple[str, ...]
    option: str


def check_consent(settings: SettingsFields, layers: Sequence[SettingsLayer]) -> None:
    """Refuse settings by which code of others runs, or secrets leave, unless the user gave them.

    Args:
        settings: What the layers come to.
        layers: Where each value stands, the highest first.

    Raises:
        SettingsError: Such a value stands in a place that cannot give consent. The error names what
            gives it.
    """
    refused: dict[int, list[_Consent]] = {}
    for consent in _consents(settings):
        place = next((n for n, layer in enumerate(layers) if _has(layer, consent.path)), None)
        if place is not None and not layers[place].consents:
            refused.setdefault(place, []).append(consent)
    for place, consents in refused.items():
        raise _refusal(layers[place], consents)


def _consents(settings: SettingsFields) -> Iterator[_Consent]:
    for setting in settings_of():
        value = getattr(settings, setting.name)
        if setting.consent and value != setting.default:
            given = "" if setting.kind == "switch" else f" {shlex.quote(masked(str(value)))}"
            yield _Consent(setting.path, f"{setting.option}{given}")
    if not all(is_own_plugin(scorer.plugin) for scorer in settings.scorers):
        yield _Consent(("scorers",), " ".join(map(_as_option, settings.scorers)))
    for name, options in settings.scorer.items():
        for key in SENDING_OPTIONS:
            if options.get(key):
                path = ("scorer", name, key)
                shown = masked_options(options)[key]
                yield _Consent(path, f"{option_name(*path)} {shlex.quote(str(shown))}")


def _as_option(scorer: ScorerSpecification) -> str:
    return f"--scorers {shlex.quote(json.dumps(scorer.model_dump()))}"


def _has(layer: SettingsLayer, path: tuple[str, ...]) -> bool:
    """Whether the layer decides the value at `path`: it has one there, or one for a table above."""
    found: Any = layer.values
    for key in path:
        if not isinstance(found, Mapping):
            return True
        if key not in found:
            return False
        found = found[key]
    return True


def _refusal(layer: SettingsLayer, consents: Sequence[_Consent]) -> SettingsError:
    *most, last = (layer.origin.spell(consent.path) for consent in consents)
    names = f"{', '.join(most)} and {last}" if most else last
    options = " ".join(consent.option for consent in consents)
    whole = "" if layer.whole is None else f"{layer.whole}, or "
    return SettingsError(
        f"{names} {layer.origin.name} would let code of others run, or send data away: only you "
        "can allow that, not a file that was merely found, nor a preset.",
        remedy=f"If you trust it, say so by {whole}{options}; in a program, by an argument of "
        "Settings().",
    )
