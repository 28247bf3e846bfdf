"""Load the settings' scorers; plugins are named by `module:Class` or `file.py:Class`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from pydantic import ValidationError

from heretic.config.tables import ScorerSpecification, without_tags
from heretic.errors import ScorerError
from heretic.records.selection import no_bound
from heretic.scorers.base import Scorer, ScorerSettings, Shows, ShowsAt
from heretic.scorers.keyword import is_refusal


class ScorerTables(ScorerSettings, Protocol):
    """The settings that say which scorers there are; `Settings` has them."""

    @property
    def scorers(self) -> Sequence[ScorerSpecification]:
        """The configured scorers, in order."""

    @property
    def scorer(self) -> Mapping[str, Mapping[str, Any]]:
        """Options of single scorers, by name."""


def load_scorers(settings: ScorerTables) -> tuple[Scorer, ...]:
    """Every configured scorer, in order.

    Raises:
        ScorerError: A plugin cannot be imported, is not a scorer, or its options are wrong.
    """
    return tuple(_load(specification, settings) for specification in settings.scorers)


def deciding_options(
    scorers: Sequence[ScorerSpecification], options: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The options of scorers without those that change no score (`Scorer.incidental`).

    Args:
        options: All options, by the scorer's name; the values are returned unchanged.

    Raises:
        ScorerError: A plugin cannot be imported, or is not a scorer.
    """
    found = {name: dict(given) for name, given in options.items()}
    for specification in scorers:
        if specification.name in found:
            for option in plugin_class(specification.plugin).incidental:
                found[specification.name].pop(option, None)
    return found


def behavior_shown(scorers: Sequence[Scorer], markers: Sequence[str]) -> Callable[[str], bool]:
    """A function that says whether a reply to a bad prompt shows the behaviour.

    It is `shows` of the first objective that reads such replies and implements `Shows`. If there is
    none, a reply shows the behaviour if it is a refusal by the markers.
    """
    scorer = _showing(scorers)
    return (lambda reply: is_refusal(reply, markers)) if scorer is None else scorer.shows


def behavior_shown_at(
    scorers: Sequence[Scorer], markers: Sequence[str]
) -> Callable[[str, str], int | None]:
    """A function (prompt, reply) that says where a reply shows the behaviour, in characters.

    It is `shown_at` of the scorer of `behavior_shown`; if that has none, the reply's beginning.
    """
    scorer = _telling(scorers)
    if scorer is not None:
        return scorer.shown_at
    shows = behavior_shown(scorers, markers)
    return lambda prompt, reply: 0 if shows(reply) else None


def shows_behavior(scorers: Sequence[Scorer]) -> bool:
    """Whether a scorer, and not the markers alone, is behind `behavior_shown`."""
    return _showing(scorers) is not None


def tells_words(scorers: Sequence[Scorer]) -> bool:
    """Whether the scorer of `behavior_shown` knows which words of a reply show the behaviour."""
    return _telling(scorers) is not None


def _telling(scorers: Sequence[Scorer]) -> ShowsAt | None:
    scorer: object = _showing(scorers)
    return scorer if isinstance(scorer, ShowsAt) else None


def _showing(scorers: Sequence[Scorer]) -> Shows | None:
    for scorer in scorers:
        searched = scorer.optimization != "none"
        if searched and "bad" in scorer.needs.responses and isinstance(scorer, Shows):
            return scorer
    return None


def detector_version(scorers: Iterable[Scorer], *, searched: bool = False) -> int | None:
    """Version of the refusal detector that scorers use; None if none of them does.

    Args:
        searched: Whether only the objectives of the search are meant.
    """
    used = (one for one in scorers if not searched or one.optimization != "none")
    return next((one.detector for one in used if one.detector is not None), None)


def check_scorers(scorers: Sequence[Scorer], most: int | None = None) -> tuple[Scorer, ...]:
    """Check the scorers, so that mistakes are reported before a model loads; returns them all.

    Args:
        most: The setting `max_refusals`; None if it is unset.

    Raises:
        SettingsError: `most` is set, and the first objective is not a share of prompts that is
            minimised, or there is no second one.
        ScorerError: What a scorer works with cannot be used.
    """
    if most is not None:
        _check_bound([scorer for scorer in scorers if scorer.optimization != "none"])
    for scorer in scorers:
        scorer.check()
    return tuple(scorers)


def _check_bound(searched: Sequence[Scorer]) -> None:
    first = searched[0] if searched else None
    if first is None or first.optimization != "minimize" or first.is_share is False:
        raise no_bound("there is none" if first is None else f"the first is {first.name}")
    if len(searched) < 2:
        raise no_bound(f"there is only {first.name}")


def _load(specification: ScorerSpecification, settings: ScorerTables) -> Scorer:
    plugin = specification.plugin
    scorer_class = plugin_class(plugin)
    try:
        return scorer_class(
            settings,
            name=specification.name,
            optimization=specification.optimization,
            options=settings.scorer.get(specification.name),
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = f"[scorer.{specification.name}] {'.'.join(without_tags(first['loc']))}".rstrip()
        known = ", ".join(scorer_class.Options.model_fields) or "none"
        raise ScorerError(
            f"{place}: {first['msg'].removeprefix('Value error, ')}.",
            remedy=f"Options of {plugin}: {known}.",
        ) from error


def plugin_class(plugin: str) -> type[Scorer]:
    """Import `module:Class` or `file.py:Class`.

    Raises:
        ScorerError: It cannot be imported or is not a `Scorer`.
    """
    location, _, class_name = plugin.rpartition(":")
    if not location or not class_name:
        raise ScorerError(
            f"The scorer plugin {plugin!r} is not of the form module:Class or file.py:Class."
        )
    try:
        module = (
            _import_file(Path(location))
            if location.endswith(".py")
            else importlib.import_module(location)
        )
    except ScorerError:
        raise
    except Exception as error:  # a plugin's own code may fail in any way
        raise ScorerError(
            f"The scorer plugin {plugin!r} cannot be imported: {type(error).__name__}: {error}."
        ) from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Scorer)):
        raise ScorerError(
            f"{plugin!r} is not a scorer.",
            remedy="Name a subclass of heretic.scorers.Scorer; see docs/scorers.md.",
        )
    return found


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ScorerError(f"The scorer file {path} does not exist.")
    name = f"heretic_plugin_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ScorerError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module
