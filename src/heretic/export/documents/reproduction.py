"""`reproduce.json`: everything that is needed to make the same weights again, and their hashes.

It holds no secrets: only settings that change scores are recorded, and none whose name suggests a
token, key, secret or password.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import heretic
from heretic.config.declaration import LARGEST_SEED
from heretic.config.schema import reproducible_names
from heretic.errors import ExportError, RunError
from heretic.export.documents.places import digests, shortened
from heretic.export.files import REPRODUCTION, is_weight_file, read_json
from heretic.export.request import ExportRequest, Strategy
from heretic.records import parse
from heretic.records.plan import Plan
from heretic.records.trial import Score
from heretic.runs.manifest import recorded_date
from heretic.system.documents import parse_json
from heretic.system.hub import model_text
from heretic.system.machine import hardware, versions
from heretic.system.secrets import masked_options

if TYPE_CHECKING:
    from torch import Tensor

    from heretic.model.core import Model

REPRODUCTION_SCHEMA = 2
_SECRET = re.compile(
    r"(^|_)(token|secret|password|passwd|credential|authorization|key)s?$|api_?key", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The content of a `reproduce.json`.

    Attributes:
        max_shard_size: Largest weight file, e.g. `5GB`.
        settings: The run's settings that change scores; missing ones have their defaults. Local
            paths are cut to their last part.
        places: SHA-256 of the local model and prompts, by dotted key of the setting.
        found: Values found at run time that a reproduction uses again: `batch_size`, `dtype`,
            `response_prefix`, `date`.
        trial: Number of the trial in its run.
        directions_sha256: Hash of the directions; see `directions_hash`.
        files: `sha256` and `size` in bytes of every file except the documents, by name.
        before: Scores of the base model.
        after: Scores of this model.
        verified: Whether `after` was measured on the reloaded files.
    """

    strategy: Strategy
    max_shard_size: str
    seed: int
    settings: Mapping[str, Any]
    found: Mapping[str, Any]
    trial: int
    plan: Plan
    directions_sha256: str
    files: Mapping[str, Mapping[str, Any]]
    before: tuple[Score, ...] = ()
    after: tuple[Score, ...] = ()
    verified: bool = False
    places: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)

    @property
    def date(self) -> datetime | None:
        """The date that chat templates were told; None in files of earlier versions.

        Raises:
            RunError: It is not a date.
        """
        return recorded_date(self.found)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "schema_version": REPRODUCTION_SCHEMA,
            "heretic_version": heretic.__version__,
            "strategy": self.strategy,
            "max_shard_size": self.max_shard_size,
            "seed": self.seed,
            "settings": dict(self.settings),
            "places": dict(self.places),
            "found": dict(self.found),
            "trial": self.trial,
            "plan": self.plan.to_dict(),
            "scores": {
                "before": [score.to_dict() for score in self.before],
                "after": [score.to_dict() for score in self.after],
                "verified": self.verified,
            },
            "directions_sha256": self.directions_sha256,
            "files": {name: dict(entry) for name, entry in self.files.items()},
            "versions": dict(self.versions),
            "hardware": dict(self.hardware),
        }

    @classmethod
    def read(cls, path: Path) -> Reproduction:
        """Read a `reproduce.json`.

        Raises:
            ExportError: The file is missing, malformed, or written by a newer version.
        """
        data = read_json(path)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, bool) or not isinstance(version, int):
            raise ExportError(
                f"{path} is not a reproduction file.",
                remedy="If heretic-llm, another project, wrote it: `heretic migrate` takes its "
                "settings.",
            )
        if version > REPRODUCTION_SCHEMA:
            raise ExportError(
                f"{path} has schema version {version}; this release reads {REPRODUCTION_SCHEMA}.",
                remedy="Update Heretic.",
            )
        try:
            return cls._parse(data)
        except RunError as error:
            raise ExportError(f"{path} is damaged: {error}") from error
        except ValueError as error:
            raise ExportError(f"{path} is damaged: {error}.") from error

    @classmethod
    def _parse(cls, data: Mapping[str, Any]) -> Reproduction:
        scores = parse.table(data.get("scores"), "scores")
        files = parse.table(data.get("files"), "files")
        return cls(
            strategy=parse.one_of(data.get("strategy"), "strategy", get_args(Strategy)),
            max_shard_size=parse.text(data.get("max_shard_size"), "max_shard_size"),
            seed=parse.whole(data.get("seed"), "seed", 0, LARGEST_SEED),
            settings=parse.table(data.get("settings"), "settings"),
            found=parse.table(data.get("found"), "found"),
            trial=parse.whole(data.get("trial"), "trial", 0),
            plan=Plan.from_dict(parse.table(data.get("plan"), "plan")),
            directions_sha256=parse.text(data.get("directions_sha256"), "directions_sha256"),
            files={name: parse.table(entry, f"files.{name}") for name, entry in files.items()},
            before=_scores(scores.get("before"), "scores.before"),
            after=_scores(scores.get("after"), "scores.after"),
            verified=parse.flag(scores.get("verified"), "scores.verified"),
            places=_texts(data.get("places", {}), "places"),
            versions=_texts(data.get("versions"), "versions"),
            hardware=parse.table(data.get("hardware"), "hardware"),
        )

    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of every weight file, by name."""
        return {
            name: str(entry.get("sha256"))
            for name, entry in self.files.items()
            if is_weight_file(name)
        }


def _scores(value: object, name: str) -> tuple[Score, ...]:
    return tuple(Score.from_dict(score) for score in parse.rows(value, name))


def _texts(value: object, name: str) -> dict[str, str]:
    table = parse.table(value, name)
    return {key: parse.text(text, f"{name}.{key}") for key, text in table.items()}


def describe(
    request: ExportRequest,
    strategy: Strategy,
    model: Model,
    revision: str | None,
    files: Mapping[str, Mapping[str, Any]],
) -> Reproduction:
    """What `reproduce.json` says about an export.

    Args:
        revision: Commit of the base model, recorded so that a moved branch changes nothing.
        files: What `files.inventory` returns for the folder.
    """
    recorded = recorded_settings(request.settings)
    settings = shortened(recorded)
    if revision is not None:
        settings["model_commit"] = revision
    found = {
        "batch_size": int(request.manifest.found.get("batch_size") or model.batch_size),
        "dtype": str(model.dtype).removeprefix("torch."),
        "response_prefix": model.response_prefix,
        "date": model.renderer.date.isoformat(),
    }
    return Reproduction(
        strategy=strategy,
        max_shard_size=request.options.max_shard_size,
        seed=request.manifest.seed,
        settings=settings,
        places=digests(recorded),
        found=found,
        trial=request.trial.number,
        plan=request.trial.plan,
        directions_sha256=directions_hash(request.directions),
        files=files,
        before=request.baseline,
        after=request.scores,
        verified=request.verified is not None,
        versions=versions(),
        hardware=hardware(model.device),
    )


def recorded_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change scores, without secrets, from all JSON-ready settings."""
    kept = {name: values[name] for name in values if name in reproducible_names()}
    scorer = {name: masked_options(options) for name, options in kept.get("scorer", {}).items()}
    if scorer:
        kept["scorer"] = scorer
    return {name: without_secrets(value) for name, value in kept.items()}


def without_secrets(value: Any) -> Any:
    """A JSON value without the keys whose names suggest a secret."""
    if isinstance(value, Mapping):
        return {
            key: without_secrets(item)
            for key, item in value.items()
            if not _SECRET.search(str(key))
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value


def found_in_export(model: str, revision: str | None = None) -> dict[str, str]:
    """What a model that was saved by Heretic records of how its prompts were made.

    Args:
        model: Folder or Hub id.

    Returns:
        `response_prefix` and `date`, as far as they are recorded; empty for all other models.
    """
    try:
        data = parse_json(model_text(model, REPRODUCTION, revision))
        found = data["found"] if isinstance(data["schema_version"], int) else {}
        kept = {name: found[name] for name in ("response_prefix", "date") if name in found}
        recorded_date(kept)
    except (ValueError, KeyError, TypeError, RunError):  # it is none of ours, or damaged
        return {}
    return {name: value for name, value in kept.items() if isinstance(value, str)}


def directions_hash(directions: Tensor) -> str:
    """SHA-256 of the directions as little-endian float32 in row order."""
    import torch

    values = directions.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Entries that differ, in words, such as `torch 2.12.0 -> 2.13.0`."""
    return [
        f"{name} {then.get(name, 'absent')} -> {now.get(name, 'absent')}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
