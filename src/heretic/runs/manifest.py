"""The manifest of a run: what identifies it, its settings, and what was found when it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from heretic.errors import RunError

SCHEMA_VERSION = 2
"""Version 2 added free-form kernels and a rank to plans."""


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
            components, baseline scores; and the date that chat templates are told.
        versions: Package name to version.
        created: When the run began, ISO 8601 in UTC.
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
    schema_version: int = SCHEMA_VERSION

    @property
    def date(self) -> datetime | None:
        """The local time that chat templates are told; of older runs, when they began.

        Raises:
            RunError: It is not a date.
        """
        return recorded_date(self.found, self.created)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunManifest:
        """Read what `to_dict` wrote.

        Raises:
            RunError: The manifest is malformed, or was written by a newer release.
        """
        version = data.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise RunError(
                f"The run manifest has schema version {version!r}; this release reads "
                f"{SCHEMA_VERSION}.",
                remedy="Upgrade heretic-llm.",
            )
        try:
            return cls(**data)
        except TypeError as error:
            raise RunError(
                f"Not a run manifest: {error}.",
                remedy="Start the run over (checkpoint_action = restart), or remove the folder.",
            ) from error


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
