"""What a run is and what was found when it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from heretic.errors import RunError

SCHEMA_VERSION = 2
"""2: plans with free-form kernels and a rank."""


@dataclass(frozen=True, slots=True)
class RunManifest:
    """What a run is and what was found at run time; `manifest.json` in the run folder.

    Attributes:
        fingerprint: Everything that changes scores (model, prompts, method, lengths, seed).
        digest: Short hash of `fingerprint`; part of the folder's name.
        found: What was found at run time: batch size, response prefix, dtype, device, layers,
            components, baseline scores.
        versions: Package name to version.
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
            RunError: The manifest is malformed or was written by a newer version.
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
            raise RunError(f"Not a run manifest: {error}.") from error
