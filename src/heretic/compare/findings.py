"""What an audit finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Check = Literal["files", "weights", "rank", "dtype", "adapter", "companions", "figures", "base"]
"""`files`: digests, index, files that are listed. `weights`: which tensors there are, and which of
them differ from the base's. `rank`: ranks of the differences. `dtype`: how tensors are stored.
`adapter`: what its configuration and its tensors say. `companions`: tokenizer, template and
configurations beside the weights. `figures`: what the card says. `base`: the base itself."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an audit found, or could not look at.

    Attributes:
        check: What was checked.
        text: One sentence that names the file or the tensor.
        failed: Whether something is wrong; otherwise something was not audited.
    """

    check: Check
    text: str
    failed: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; see docs/compare.md."""
        return asdict(self)


def failures(findings: Sequence[Finding]) -> list[Finding]:
    """Those that say that something is wrong."""
    return [finding for finding in findings if finding.failed]


def shortened(names: Sequence[str], most: int = 3) -> str:
    """Names in a sentence; of many, the first."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
