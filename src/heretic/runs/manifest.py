"""The manifest of a run: what identifies it, its settings, what was found, digests of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from heretic.errors import RunError
from heretic.records import parse
from heretic.records.trial import Score

SCHEMA_VERSION = 3
"""Version 2 added free-form kernels and a rank to plans, version 3 checksums of all files."""

FIRST_WITH_CHECKSUMS = 3

FIRST_DETECTOR = 1
"""Version of the refusal detector before runs recorded it."""

RESTART = "Restore it from a copy, or start the run over (checkpoint_action = restart)."
_CHECKSUM = "checksum"

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class FileMark:
    """What a file of the run must hold.

    Attributes:
        sha256: Digest of its content.
        before: While it is being replaced, the digest of the content before ("" without a file):
            after a kill it may hold either. None once it is known to be replaced.
    """

    sha256: str
    before: str | None = None

    def to_dict(self) -> dict[str, str]:
        """JSON-ready form."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: object, name: str) -> FileMark:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: It is malformed.
        """
        found = parse.table(data, name)
        parse.only(found, name, ("sha256", "before"))
        before = found.get("before")
        return cls(
            parse.text(found.get("sha256"), f"{name}.sha256"),
            None if before is None else parse.text(before, f"{name}.before"),
        )


@dataclass(frozen=True, slots=True)
class JournalMark:
    """How far the journal had come when the manifest was written; it only grows.

    Attributes:
        length: Its bytes.
        crc: Check value of all of them.
    """

    length: int
    crc: int

    @classmethod
    def from_dict(cls, data: object, name: str) -> JournalMark:
        """Read the mark's JSON form.

        Raises:
            ValueError: It is malformed.
        """
        found = parse.table(data, name)
        parse.only(found, name, ("length", "crc"))
        return cls(*(parse.whole(found.get(key), f"{name}.{key}", 0) for key in ("length", "crc")))


@dataclass(frozen=True, slots=True)
class RunManifest:
    """The content of `manifest.json` in the run folder.

    Attributes:
        model: Name of the model, as in the settings.
        digest: Short hash of fingerprint and seed; part of the folder's name.
        seed: Random seed of the run.
        fingerprint: Everything that changes scores: model, prompts, method, lengths.
        settings: All settings that the run began with.
        found: Results of loading the model: batch size, response prefix, dtype, device, layers,
            components, baseline scores; the date that chat templates are told; what proposes
            the plans (`search`, with auto replaced by what it meant); and the version of the
            refusal detector, if scorers use it.
        versions: Package name to version.
        created: When the run began, ISO 8601 in UTC.
        files: Name of each file of the run, as a path below its folder, to what it must hold.
        journal: How long the journal is at least; None without one.
        schema_version: Version of the format of this file.
    """

    model: str
    digest: str
    seed: int
    fingerprint: Mapping[str, Any]
    settings: Mapping[str, Any]
    found: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    files: Mapping[str, FileMark] = field(default_factory=dict)
    journal: JournalMark | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def date(self) -> datetime | None:
        """The local time that chat templates are told; of older runs, when they began.

        Raises:
            RunError: It is not a date.
        """
        return recorded_date(self.found, self.created)

    @property
    def has_checksums(self) -> bool:
        """Whether it is of a release that kept checksums."""
        return self.schema_version >= FIRST_WITH_CHECKSUMS

    def recorded(self, key: str, read: Callable[[object, str], Value]) -> Value:
        """A value of `found`, read by a function of `records.parse`.

        Raises:
            RunError: It is missing or malformed.
        """
        try:
            return read(self.found.get(key), f"found.{key}")
        except ValueError as error:
            raise RunError(f"Not a run manifest: {error}.", remedy=RESTART) from error

    @property
    def baseline(self) -> tuple[Score, ...]:
        """The scores of the unedited model when the run began.

        Raises:
            RunError: They are malformed.
        """
        return self.recorded("baseline", _scores)

    @property
    def search(self) -> str | None:
        """What proposes the plans, also where the setting left that open; None if not recorded.

        Raises:
            RunError: It is malformed.
        """
        return self.recorded("search", parse.text) if "search" in self.found else None

    @property
    def detector(self) -> int:
        """Version of the refusal detector; it means something only if the run's scorers use it.

        Raises:
            RunError: It is malformed.
        """
        known = "detector" in self.found
        return self.recorded("detector", parse.whole) if known else FIRST_DETECTOR

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with a checksum of all that it holds."""
        data = asdict(self)
        data["files"] = {name: mark.to_dict() for name, mark in self.files.items()}
        return {**data, _CHECKSUM: _checksum(data)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunManifest:
        """Read what `to_dict` wrote.

        Raises:
            RunError: The manifest is malformed or damaged, or was written by a newer release.
        """
        version = data.get("schema_version")
        if isinstance(version, bool) or not isinstance(version, int) or version > SCHEMA_VERSION:
            raise RunError(
                f"The run manifest has schema version {version!r}; this release reads "
                f"{SCHEMA_VERSION}.",
                remedy="Update Heretic.",
            )
        content = {key: value for key, value in data.items() if key != _CHECKSUM}
        is_checked = _CHECKSUM in data or version >= FIRST_WITH_CHECKSUMS
        if is_checked and data.get(_CHECKSUM) != _checksum(content):
            raise RunError(
                "The run manifest is damaged: it does not have its checksum.", remedy=RESTART
            )
        try:
            return cls._parsed(content, version)
        except ValueError as error:
            raise RunError(f"Not a run manifest: {error}.", remedy=RESTART) from error

    @classmethod
    def _parsed(cls, data: Mapping[str, Any], version: int) -> RunManifest:
        parse.only(data, "the manifest", tuple(cls.__slots__))
        versions = parse.table(data.get("versions", {}), "versions")
        files = parse.table(data.get("files", {}), "files")
        journal = data.get("journal")
        return cls(
            model=parse.text(data.get("model"), "model"),
            digest=parse.text(data.get("digest"), "digest"),
            seed=parse.whole(data.get("seed"), "seed", 0),
            fingerprint=parse.table(data.get("fingerprint"), "fingerprint"),
            settings=parse.table(data.get("settings"), "settings"),
            found=parse.table(data.get("found", {}), "found"),
            versions={key: parse.text(value, key) for key, value in versions.items()},
            created=parse.text(data.get("created", ""), "created"),
            files={name: FileMark.from_dict(mark, f"files.{name}") for name, mark in files.items()},
            journal=None if journal is None else JournalMark.from_dict(journal, "journal"),
            schema_version=version,
        )


def recorded_date(found: Mapping[str, Any], created: str = "") -> datetime | None:
    """The date in the values found by a run, as local time without a zone.

    Args:
        created: Taken where there is no date, ISO 8601; empty where it is unknown too.

    Raises:
        RunError: It is not a date.
    """
    text = found.get("date") or created
    if not text:
        return None
    try:
        date = datetime.fromisoformat(text)
        return date if date.tzinfo is None else date.astimezone().replace(tzinfo=None)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise RunError(f"The recorded date {text!r} is not one.") from error


def _scores(value: object, name: str) -> tuple[Score, ...]:
    return tuple(map(Score.from_dict, parse.rows([] if value is None else value, name)))


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of JSON-ready content, in any key order."""
    # ASCII, so that half characters in paths of other encodings do no harm.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
