"""Plugins of the other tool, and which of its plugin tables a file uses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heretic.config.foreign.convert import Converted, Document, NoCounterpartError
from heretic.config.nested import merged
from heretic.config.tables import SCORERS, is_own_plugin


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin that comes with the other tool.

    Attributes:
        kind: `scorer` or `modifier`.
        path: How its files name it.
        ours: Our scorer, by its short name; empty if there is none.
        name: Name of the score here.
        why: What to know; what to use instead, if there is no such scorer here.
    """

    kind: str
    path: str
    ours: str = ""
    name: str = ""
    why: str = ""

    @property
    def class_name(self) -> str:
        """The name of its class, and of its table."""
        return self.path.rpartition(".")[2]


KEYWORD_RATE = Plugin("scorer", "heretic.scorers.keyword_rate.KeywordRate", "keyword", "refusals")

PLUGINS = (
    KEYWORD_RATE,
    Plugin(
        "scorer", "heretic.scorers.kl_divergence.KLDivergence", "kl_divergence", "kl_divergence"
    ),
    Plugin(
        "scorer",
        "heretic.scorers.refusal_detector.RefusalDetector",
        "refusal",
        "refusals",
        "RefusalDetector (a classifier) becomes `refusal`, which judges by rules; a classifier of "
        "your choice is the scorer `classifier_judge`",
    ),
    Plugin(
        "scorer",
        "heretic.scorers.benchmark_score.BenchmarkScore",
        why="BenchmarkScore has no counterpart: `capability` reads multiple-choice items in every "
        "trial, and `benchmarks` runs tasks of the same harness on the chosen trial",
    ),
    Plugin("modifier", "heretic.modifiers.abliteration.Abliteration"),
    Plugin("modifier", "heretic.modifiers.ara.ARA"),
)

DEFAULTS = {"scorer": ("KeywordRate", "KLDivergence"), "modifier": ("ARA",)}
"""Classes that a file uses which names none; if it has a table of one modifier, that one."""

_COUNTS = ("keyword", "refusal")
_KL = {"plugin": "kl_divergence", "optimization": "minimize", "name": "kl_divergence"}


_CODE = (
    "runs code of others, and is written for the other tool: --scorers names a subclass of this "
    "tool's Scorer (docs/scorers.md)"
)


def plugin_of(path: Any) -> Plugin | None:
    """The plugin that a file names; None if it is not one that comes with the tool."""
    return next((plugin for plugin in PLUGINS if plugin.path == path), None)


def entries_of(listed: Any) -> list[Mapping[str, Any]]:
    """The tables of a list of plugins."""
    return (
        [entry for entry in listed if isinstance(entry, Mapping)]
        if isinstance(listed, list)
        else []
    )


def in_use(document: Document, kind: str) -> tuple[str, ...]:
    """Names of the classes that a file uses: `scorers` and `modifiers` say so."""
    if isinstance(document.get(f"{kind}s"), list):
        paths = [entry.get("plugin") for entry in entries_of(document.get(f"{kind}s"))]
        return tuple(str(path).rpartition(".")[2] for path in paths)
    tables = document.get(kind)
    named = tuple(tables) if isinstance(tables, Mapping) else ()
    return named if kind == "modifier" and len(named) == 1 else DEFAULTS[kind]


def of_others(document: Document) -> set[str]:
    """Names of the classes of scorers that are neither the other tool's nor ours."""
    paths = [str(entry.get("plugin")) for entry in entries_of(document.get("scorers"))]
    foreign = [path for path in paths if plugin_of(path) is None and not _is_ours(path)]
    return {re.split(r"[.:]", path)[-1] for path in foreign}


def _is_ours(path: str) -> bool:
    return path in SCORERS or is_own_plugin(path)


def with_instances(document: Document) -> dict[str, Any]:
    """The document with the options of the first instance of each plugin in its class's table."""
    result = dict(document)
    for kind in DEFAULTS:
        tables = dict(document.get(kind) or {}) if isinstance(document.get(kind), Mapping) else {}
        seen: set[str] = set()
        for entry in entries_of(document.get(f"{kind}s")):
            plugin = plugin_of(entry.get("plugin"))
            if plugin is None or plugin.class_name in seen:
                continue
            seen.add(plugin.class_name)
            own = tables.pop(f"{plugin.class_name}_{entry.get('instance_name')}", None)
            if isinstance(own, Mapping):
                shared = tables.get(plugin.class_name)
                tables[plugin.class_name] = merged(shared or {}, own)
        if tables:
            result[kind] = tables
    return result


def modifiers(value: Any, document: Document) -> Converted:
    """The method, of which this tool has one."""
    del document
    paths = [entry.get("plugin") for entry in entries_of(value)]
    foreign = [str(path) for path in paths if plugin_of(path) is None]
    if foreign:
        raise NoCounterpartError(
            f"{', '.join(foreign)} runs code of others, and is written for the other tool"
        )
    return Converted(None)


def scorers(value: Any, document: Document) -> Converted:
    """The list of scorers; KL divergence is added where nothing else would measure damage."""
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise NoCounterpartError("it is not a list of tables")
    found: list[dict[str, Any]] = []
    remarks: list[str] = []
    for entry in value:
        one = _scorer(entry, document, [scorer["plugin"] for scorer in found])
        remarks += one.remarks
        if one.value is not None:
            taken = {scorer["name"] for scorer in found if "name" in scorer}
            twice = one.value.get("name") in taken
            found.append({**one.value, "name": one.value["plugin"]} if twice else one.value)
    optimized = {one["plugin"] for one in found if one.get("optimization") != "none"}
    if not any(plugin in optimized for plugin in _COUNTS) and not _has_own(found):
        raise NoCounterpartError(
            "; ".join([*remarks, "no scorer of the behaviour is left: the default stays"])
        )
    if len(found) < len(value) and len(optimized) == 1 and "kl_divergence" not in optimized:
        found = [one for one in found if one["plugin"] != "kl_divergence"] + [_KL]
        remarks.append("`kl_divergence` is added, as nothing else measures damage")
    return Converted(found, tuple(remarks))


def _scorer(entry: Mapping[str, Any], document: Document, seen: Sequence[str]) -> Converted:
    path = entry.get("plugin")
    plugin = plugin_of(path)
    if plugin is None:
        if _is_ours(str(path)):
            return Converted(dict(entry))
        return Converted(None, (f"{path} {_CODE}",))
    if not plugin.ours:
        return Converted(None, (plugin.why,))
    if plugin.ours in seen:
        return Converted(
            None,
            (f"a second {plugin.class_name} is left out: `{plugin.ours}` has one set of options",),
        )
    optimization = entry.get("optimization", "minimize")
    remarks = [plugin.why] if plugin.why else []
    if optimization == "maximize" and plugin.ours in _COUNTS:
        remarks.append('to strengthen a behaviour, set goal = "induce" as well')
    name = _score_name(plugin, document)
    return Converted(
        {"plugin": plugin.ours, "optimization": optimization, "name": name}, tuple(remarks)
    )


def _score_name(plugin: Plugin, document: Document) -> str:
    tables = document.get("scorer")
    options = tables.get(plugin.class_name) if isinstance(tables, Mapping) else None
    given = options.get("score_name") if isinstance(options, Mapping) else None
    return re.sub(r"\W+", "_", str(given).lower()).strip("_") if given else plugin.name


def _has_own(found: Sequence[Mapping[str, Any]]) -> bool:
    ours = {plugin.ours for plugin in PLUGINS}
    return any(one.get("plugin") not in ours for one in found)


def by_keywords(document: Document) -> list[dict[str, Any]]:
    """The scorers of a file that says by which texts replies are counted, and names no scorers."""
    name = _score_name(KEYWORD_RATE, document)
    return [{"plugin": "keyword", "optimization": "minimize", "name": name}, dict(_KL)]
