"""The manifest of a run: what identifies it, its settings, and what was found when it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
            components, baseline scores.
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
