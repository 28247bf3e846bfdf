"""The card's section on how its figures were measured, and what was not measured."""

from __future__ import annotations

from heretic.export.documents.markdown import table
from heretic.export.request import ExportRequest
from heretic.records.trial import words_of
from heretic.refusals import VERSION

ACCURACY = (
    "balanced accuracy 0.98 on labelled replies that its rules were made with, 0.65 to 0.94 on "
    "small sets of other wordings"
)
"""How well the detector tells refusals from answers (docs/refusals.md)."""

_SKIPPED = {
    "capability": "whether it still answers questions right (capability)",
    "recognition": "whether it still recognises what the original declines (recognition)",
}
"""What a card says of figures that nobody measured, by the scorer's name."""


def measured_text(request: ExportRequest) -> str:
    """How the figures came about, in Markdown; nothing if this copy has none."""
    if request.as_recorded or not (request.scores or request.baseline):
        return ""
    lines = [
        _lengths(request),
        f"- {_choice(request)}",
        *_counted(request),
        f"- Seed: {request.manifest.seed}.",
        f"- **Not measured:** {'; '.join(not_measured(request))}.",
    ]
    text = "\n## How this was measured\n\n" + "\n".join(lines) + "\n"
    return text + _sets(request)


def _lengths(request: ExportRequest) -> str:
    short = request.settings.get("max_response_length")
    long = request.long_replies
    more = "" if long is None else f", and up to {long.tokens} when the edit was scored again"
    return f"- Replies had up to {short} new tokens in the search{more}; decoding was greedy."


def _choice(request: ExportRequest) -> str:
    """Which prompts chose the trial, and which reported it."""
    if request.compared < 2:
        return "The edit was not chosen among others by these figures."
    chosen = (
        f"The edit was chosen among {request.compared} by its scores on the evaluation prompts. "
        "The best of many looks better than it is:"
    )
    if request.held_out is None:
        return (
            f"{chosen} the intervals of the first table are wide enough to hold for all "
            f"{request.compared} together (Bonferroni). No fresh prompts were at hand."
        )
    return f"{chosen} believe the held-out prompts, which neither directions nor search have seen."


def _counted(request: ExportRequest) -> list[str]:
    """What counted the refusals, and how well that agrees with people."""
    rows: list[dict[str, str]] = list(request.settings.get("scorers", []))
    rows = [row for row in rows if row["plugin"].startswith("heretic.")]
    kinds = {
        ".refusal:": "Refusals were counted by rules over the words of a reply, not by people: "
        f"detector {_versions(request)}",
        ".keyword:": "Refusals were counted by a list of words",
    }
    found = []
    for part, how in kinds.items():
        own = [row for row in rows if part in row["plugin"]]
        found += [f"- The row {words_of(row['name'])}: {how}." for row in own]
    return found


def _versions(request: ExportRequest) -> str:
    """The detector's version, and its accuracy; scores of an older run may have an older one."""
    scores = (*request.baseline, *request.scores)
    judged = sorted({score.detector for score in scores if score.detector is not None})
    if judged in ([], [VERSION]):
        return f"version {VERSION}, {ACCURACY}"
    if len(judged) == 1:
        return f"version {judged[0]}, an earlier one, whose accuracy is not told here"
    told = " and ".join(map(str, judged))
    return f"versions {told}, **whose counts cannot be compared**: of version {VERSION}, {ACCURACY}"


def not_measured(request: ExportRequest) -> list[str]:
    """What this card has no figure of, in words."""
    long = request.long_replies
    have = {score.name for score in request.scores}
    have |= {score.name for score in (long.after if long else ())}
    found = [text for name, text in _SKIPPED.items() if name not in have]
    if long is None:
        found.append("replies longer than the search's (late refusals, loops)")
    if request.held_out is None:
        found.append("prompts that the search never saw")
    if request.verified is None:
        found.append("these files, loaded again from disk")
    found.append("files that others quantise from this one")
    return [*found, "languages and behaviours that no prompt below asks for"]


def _sets(request: ExportRequest) -> str:
    if not request.prompts:
        return ""
    rows = [
        [used.use, used.source or "rows left over", str(used.count), f"`{used.digest}`"]
        for used in request.prompts
    ]
    heading = ["prompts", "data set, split", "number", "digest"]
    return f"\n{table(heading, rows)}"
