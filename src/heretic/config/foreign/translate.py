"""Tells files of the other tool from ours, and applies the rules to them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from heretic.config.foreign.convert import Document, NoCounterpartError
from heretic.config.foreign.plugins import (
    DEFAULTS,
    by_keywords,
    entries_of,
    in_use,
    of_others,
    plugin_of,
    with_instances,
)
from heretic.config.foreign.rules import (
    JUDGE_SCORERS,
    JUDGE_TABLE,
    NAME,
    RECORDED,
    Handling,
    Kind,
    Rule,
    rules_of,
)
from heretic.config.nested import merged, read_toml
from heretic.config.schema import (
    SettingsOrigin,
    consent_names,
    option_name,
    settings_of,
    unknown_key,
)
from heretic.config.tables import SCORERS, SENDING_OPTIONS
from heretic.errors import SettingsError
from heretic.system import documents

_PATH = "."

_BY_KEYWORDS = (
    "replies are counted by these texts, so the scorers are `keyword` and `kl_divergence`; without "
    "these two settings, this tool's own detector counts refusals"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a key.

    Attributes:
        key: As the file has it.
        handling: As its rule says; `left` if its value could not be taken, `unknown` if there is no
            rule, `ours` if it is a setting of ours that the other tool does not have.
        to: Our setting; empty if nothing was set.
        text: What to know of it, or why it was left out.
    """

    key: str
    handling: Handling | str
    to: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Translation:
    """A file as ours.

    Attributes:
        kind: What the file is.
        release: Of the other tool, such as 2.x; empty if its keys do not tell.
        values: Settings of ours, nested as in TOML.
        entries: What became of each key, in the order of the file.
    """

    kind: Kind
    release: str
    values: Mapping[str, Any]
    entries: Sequence[Entry] = field(default_factory=tuple)

    def of(self, *handlings: str) -> tuple[Entry, ...]:
        """The entries that were handled in one of these ways."""
        return tuple(entry for entry in self.entries if entry.handling in handlings)

    @property
    def taken(self) -> tuple[Entry, ...]:
        """The entries that set something."""
        return tuple(entry for entry in self.entries if entry.to)


def read_document(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, or of a JSON file whose name says so.

    Raises:
        SettingsError: It cannot be read, or is not such a document.
    """
    if path.suffix.lower() != ".json":
        return read_toml(path)
    found = documents.read_json(path, kind=SettingsError, what=f"The file {path}", strict=False)
    if not isinstance(found, Mapping):
        raise SettingsError(f"The file {path} holds no settings.")
    return dict(found)


def is_foreign(document: Document, path: Path) -> bool:
    """Whether a file is the other tool's: it has a key that only that has, and none of ours alone.

    So a file of ours with a misspelled key stays ours, and its error too.
    """
    if path.suffix.lower() == ".json":
        return True  # ours are TOML
    theirs = _is_judge(document) or bool(foreign_keys(document))
    return theirs and not _own_keys(document)


def foreign_keys(document: Document) -> tuple[str, ...]:
    """The keys of a settings file that only the other tool has.

    `scorers` and `scorer`, which both have, are among them if the plugins in them are its own.
    """
    ours = _our_names()
    found = [key for key in document if key not in ours and key in _their_names()]
    theirs = [plugin_of(entry.get("plugin")) for entry in entries_of(document.get("scorers"))]
    tables = document.get("scorer")
    named = tables if isinstance(tables, Mapping) and "scorers" not in document else {}
    found += ["scorers"] if any(theirs) else []
    found += ["scorer"] if any(name in _their_tables("scorer") for name in named) else []
    return tuple(found)


def _own_keys(document: Document) -> list[str]:
    own = [key for key in document if key in _our_names() - _their_names()]
    for entry in entries_of(document.get("scorers")):
        if plugin_of(entry.get("plugin")) is None:
            named = str(entry.get("plugin"))
            own += ["scorers"] if "name" in entry or ":" in named or named in SCORERS else []
    return own


@cache
def _our_names() -> frozenset[str]:
    return frozenset(setting.name for setting in settings_of())


@cache
def _their_names() -> frozenset[str]:
    """First parts of the keys of settings files; `scorer` and `modifier` are among them."""
    return frozenset(key.partition(_PATH)[0] for key in rules_of("settings"))


@cache
def _their_tables(kind: str) -> frozenset[str]:
    """Names of the tables of `scorer` or `modifier`."""
    keys = (key.split(_PATH) for key in rules_of("settings"))
    return frozenset(parts[1] for parts in keys if len(parts) > 1 and parts[0] == kind)


def translate(document: Document, path: Path) -> Translation:
    """A document of the other tool as settings of ours.

    Args:
        path: Where it was read; the ending tells a reproduction file.

    Raises:
        SettingsError: It is a reproduction file of ours.
    """
    kind = _kind_of(document, path)
    found = _Found(document=_plain(_settings_in(document, kind, path)), kind=kind)
    if kind == "reproduction":
        _note_the_rest(document, found)
    _note_unused(found)
    _walk(found.document, (), found)
    _complete(found)
    return Translation(kind, _release(found.entries, kind), found.values, tuple(found.entries))


@dataclass(slots=True)
class _Found:
    """A translation that is being made."""

    document: dict[str, Any]
    kind: Kind
    values: dict[str, Any] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    unused: set[tuple[str, ...]] = field(default_factory=set)


def _kind_of(document: Document, path: Path) -> Kind:
    if path.suffix.lower() == ".json":
        return "reproduction"
    return "judge" if _is_judge(document) else "settings"


def _is_judge(document: Document) -> bool:
    """Whether it is the file of a judge: beside settings, `models` is a misspelled `model`."""
    known = document.keys() <= rules_of("judge").keys()
    return known and not document.keys().isdisjoint(("api_base", "models"))


def _settings_in(document: Document, kind: Kind, path: Path) -> dict[str, Any]:
    """The table of settings in a file, with the options of instances in place."""
    if kind == "judge":
        return dict(document)
    if kind == "settings":
        return with_instances(document)
    if "plan" in document and "schema_version" in document:
        raise SettingsError(
            f"{path} is a reproduction file of this tool.",
            remedy=f"`heretic reproduce {path}` makes its model again.",
        )
    settings = document.get("settings")
    beside = {name: document[name] for name in RECORDED if name in document}
    inside = settings if isinstance(settings, Mapping) else {}
    return with_instances({**_plain(beside), **_plain(inside)})


def _plain(value: Any) -> Any:
    """A document without keys that are null: in JSON that means unset."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _note_the_rest(document: Document, found: _Found) -> None:
    rest = [key for key in document if key not in (*RECORDED, "settings")]
    if rest:
        text = (
            "what it records of that model, its edit and its machine is no setting; this tool "
            "searches an edit of its own"
        )
        found.entries.append(Entry(", ".join(rest), "left", text=text))


def _note_unused(found: _Found) -> None:
    """Mark tables of plugins that the file does not use."""
    for kind in DEFAULTS if found.kind != "judge" else ():
        tables, used = found.document.get(kind), in_use(found.document, kind)
        for name in tables if isinstance(tables, Mapping) else ():
            if name in used or name.partition("_")[0] not in _their_tables(kind):
                continue
            found.unused.add((kind, name))
            text = f"the file does not use this {kind}, or has another instance of it"
            found.entries.append(Entry(f"{kind}.{name}", "left", text=text))


def _walk(table: Mapping[str, Any], above: tuple[str, ...], found: _Found) -> None:
    for key, value in table.items():
        place = (*above, key)
        if place not in found.unused:
            _apply(place, value, found)


def _apply(place: tuple[str, ...], value: Any, found: _Found) -> None:
    rules, key = rules_of(found.kind), _PATH.join(place)
    rule = rules.get(key)
    if rule is not None:
        found.entries.append(_by_rule(rule, value, found))
    elif isinstance(value, Mapping) and any(known.startswith(f"{key}.") for known in rules):
        _walk(value, place, found)
    elif isinstance(value, Mapping) and place[:-1] in _PLUGIN_TABLES and found.kind != "judge":
        _apply_plugin_table(place, value, found)
    elif key in _our_names() and key not in consent_names():
        found.values[key] = value
        found.entries.append(Entry(key, "ours", key))
    else:
        text = f"neither {NAME} (by its own files) nor this tool has such a setting"
        found.entries.append(Entry(key, "unknown", text=text))


_PLUGIN_TABLES = {(kind,) for kind in DEFAULTS}


def _apply_plugin_table(place: tuple[str, ...], value: Mapping[str, Any], found: _Found) -> None:
    """Options of a plugin that did not come with the other tool: of others, or of ours."""
    key = _PATH.join(place)
    if place[0] == "modifier" or place[1] in of_others(found.document):
        text = "it belongs to a plugin of others, written for the other tool"
        found.entries.append(Entry(key, "left", text=text))
        return
    kept = {name: option for name, option in value.items() if name not in SENDING_OPTIONS}
    found.values = merged(found.values, {place[0]: {place[1]: kept}})
    found.entries.append(Entry(key, "ours", key))
    for name in SENDING_OPTIONS:
        if name in value:
            text = f"it decides where replies are sent: say {option_name(*place, name)} yourself"
            found.entries.append(Entry(f"{key}.{name}", "consent", text=text))


def _by_rule(rule: Rule, value: Any, found: _Found) -> Entry:
    """Set what a rule makes of a value, and say so."""
    if rule.handling in ("left", "consent"):
        return Entry(rule.key, rule.handling, text=rule.why)
    try:
        made = rule.convert(value, found.document)
    except NoCounterpartError as refused:
        return Entry(rule.key, "left", text=str(refused))
    text = "; ".join(part for part in (rule.why, *made.remarks) if part)
    if made.value is None:
        return Entry(rule.key, rule.handling, text=text)
    fragment: Any = made.value
    for part in reversed(rule.to.split(_PATH)):
        fragment = {part: fragment}
    known = _at(found.values, rule.to)
    if known not in (None, made.value) and rule.to != JUDGE_TABLE:
        other = next(entry.key for entry in found.entries if entry.to == rule.to)
        return Entry(rule.key, "left", text=f"{rule.to} comes from {other}, with another value")
    found.values = merged(found.values, fragment)
    kept = rule.key == rule.to and made.value == value and not text
    return Entry(rule.key, "same" if kept else rule.handling, rule.to, text)


def _at(values: Mapping[str, Any], dotted: str) -> Any:
    found: Any = values
    for key in dotted.split(_PATH):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _complete(found: _Found) -> None:
    """Add the scorers that a file implies."""
    if found.kind == "judge":
        if "scorer" in found.values:
            found.values["scorers"] = [dict(one) for one in JUDGE_SCORERS]
    elif "refusal_markers" in found.values and "scorers" not in found.document:
        found.values["scorers"] = by_keywords(found.document)
        found.entries = [
            replace(
                entry,
                handling="converted",  # what it is may be as it was, but it also sets the scorers
                text="; ".join(filter(None, (entry.text, _BY_KEYWORDS))),
            )
            if entry.to == "refusal_markers"
            else entry
            for entry in found.entries
        ]


def _release(entries: Sequence[Entry], kind: Kind) -> str:
    """The release that the keys tell."""
    if kind == "judge":
        return ""
    rules = rules_of(kind)
    only: Iterator[str] = (rules[e.key].of for e in entries if e.key in rules)
    told = {of for of in only if "," not in of}
    return "2.x" if "2.x" in told else "1.x" if told else ""


def without(translation: Translation, name: str, reason: str) -> Translation:
    """A translation without one of our settings, whose value is not valid.

    Args:
        name: A setting at the top level.
        reason: Why, for the entries that had set it.
    """
    return replace(
        translation,
        values={key: value for key, value in translation.values.items() if key != name},
        entries=tuple(
            Entry(entry.key, "left", text=reason) if entry.to.partition(_PATH)[0] == name else entry
            for entry in translation.entries
        ),
    )


def check_known(translation: Translation, origin: SettingsOrigin) -> None:
    """Refuse keys that neither tool has: they may be misspelled.

    Raises:
        SettingsError: There is such a key, or nothing at all was taken.
    """
    for entry in translation.of("unknown"):
        raise unknown_key(tuple(entry.key.split(".")), origin)
    if not translation.values:
        raise SettingsError(
            f"Nothing {origin.name} could be taken: it is a file of {NAME}, another project."
        )


def check_ours(values: Document, path: Path, origin: SettingsOrigin) -> None:
    """Refuse a key that only the other tool has, in a file with settings that only this one has.

    Raises:
        SettingsError: There is one.
    """
    rules = rules_of("settings")
    for key in foreign_keys(values):
        if key in _our_names():
            continue  # what is wrong in it is told when it is validated
        why = rules[key].why if key in rules else ""
        raise SettingsError(
            f"Unknown setting {key} {origin.name}: it is one of {NAME}, another project, and other "
            "settings there are this tool's.",
            remedy=f"{why[:1].upper()}{why[1:]}{'. ' if why else ''}Leave it out, or convert the "
            f"file: heretic migrate {shlex.quote(str(path))}.",
        )
