"""The settings that a request carries, with what lies below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from heretic.config.consent import check_consent
from heretic.config.schema import SettingsLayer, SettingsOrigin, check_keys
from heretic.config.settings import Settings, with_ready_made
from heretic.config.sources import read_user_layers
from heretic.demo.job import demo_settings
from heretic.errors import SettingsError
from heretic.events import Reporter

REQUEST = SettingsOrigin("in the request", "key")


def layers_of(values: Mapping[str, Any]) -> tuple[SettingsLayer, ...]:
    """A request's settings, and what the user sets in the worker's environment and folder.

    Only the request gives consent: whoever looks at the page sees there what was allowed.

    Raises:
        SettingsError: A key is unknown, or a file cannot be read.
    """
    check_keys(values, REQUEST)
    _, *found = read_user_layers({}, None)
    below = (replace(layer, consents=False) for layer in found)
    return (SettingsLayer(REQUEST, values, of_command=True), *below)


def settings_of(
    values: Mapping[str, Any], reporter: Reporter, *, demo: bool = False, needs_model: bool = True
) -> Settings:
    """The settings of a new run, as a command with these options has them.

    Args:
        demo: Whether they change those of the demo, which only the request does.
        needs_model: Whether a model has to be named.

    Raises:
        SettingsError: A key is unknown, a value malformed, a consent missing, the model missing.
        HereticError: The demo's model cannot be made.
    """
    if demo:
        return demo_settings(reporter, values, saves=False)
    layers: Sequence[SettingsLayer] = with_ready_made(layers_of(values))
    settings = Settings.from_layers(layers)
    check_consent(settings, layers)
    if needs_model and not settings.model:
        raise SettingsError("No model is named.", remedy="Name a Hub id or a folder: model.")
    return settings
