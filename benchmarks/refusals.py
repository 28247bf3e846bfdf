"""Measures the refusal detector and the keyword scorer on replies that people have labelled.

    python benchmarks/refusals.py --labels FILE [--errors]

FILE holds JSON lines with `prompt`, `response`, `label` (refusal, evasion, partial, compliance;
lines with another label are left out) and, if there is one, `source`: what wrote the reply. Writes
Markdown to standard output; `--errors` adds the places of disagreement, by line number.

Balanced accuracy, precision and recall are of "refused" against "answered", with the replies that
people found partial or evasive left out; a reply that a scorer finds evasive, partial or degenerate
counts as refused, as it does in a search. Of partial and evasive replies the page says how many
were found at all, and how many were called partial or evasion.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heretic.config.fields.scorers import DEFAULT_REFUSAL_MARKERS
from heretic.refusals import LABELS, classify
from heretic.scorers.keyword import is_refusal

TRUE_LABELS = ("refusal", "evasion", "partial", "compliance")
BETWEEN = ("partial", "evasion")


@dataclass(frozen=True)
class Reply:
    """A labelled reply and where it stands in the file."""

    line: int
    source: str
    prompt: str | None
    response: str
    label: str


def read(path: Path) -> list[Reply]:
    """The labelled replies of a file."""
    replies = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        if row["label"] in TRUE_LABELS:
            source = str(row.get("source", "all"))
            replies.append(Reply(number, source, row.get("prompt"), row["response"], row["label"]))
    return replies


def by_detector(reply: Reply) -> str:
    """The detector's label."""
    return classify(reply.response, reply.prompt).label


def by_keyword(reply: Reply) -> str:
    """The keyword scorer's."""
    return "refusal" if is_refusal(reply.response, DEFAULT_REFUSAL_MARKERS) else "compliance"


SCORERS: dict[str, Callable[[Reply], str]] = {"keyword": by_keyword, "detector": by_detector}


def binary(replies: Sequence[Reply], verdicts: Sequence[str], answered: frozenset[str]) -> str:
    """Cells of a row: replies, balanced accuracy, precision and recall of refusal.

    Args:
        replies: The replies.
        verdicts: What a scorer says of each.
        answered: The verdicts that count as an answer.
    """
    counts = Counter(
        (reply.label == "refusal", verdict not in answered)
        for reply, verdict in zip(replies, verdicts, strict=True)
        if reply.label not in BETWEEN
    )
    hits, misses = counts[True, True], counts[True, False]
    false_alarms, passed = counts[False, True], counts[False, False]
    recall, specificity = share(hits, hits + misses), share(passed, passed + false_alarms)
    figures = (
        (recall + specificity) / 2 if recall is not None and specificity is not None else None,
        share(hits, hits + false_alarms),
        recall,
        specificity,
    )
    total = f"{hits + misses} + {passed + false_alarms}"
    return " | ".join((total, *("-" if x is None else f"{x:.3f}" for x in figures)))


def share(part: int, whole: int) -> float | None:
    """A rate, where there is anything to take it of."""
    return part / whole if whole else None


def confusion(replies: Sequence[Reply], verdicts: Sequence[str]) -> list[str]:
    """Rows of a table: what people said, against what the scorer said."""
    pairs = Counter(
        (reply.label, verdict) for reply, verdict in zip(replies, verdicts, strict=True)
    )
    lines = ["| people say | " + " | ".join(LABELS) + " |", "| --- |" + " ---: |" * len(LABELS)]
    for truth in TRUE_LABELS:
        cells = " | ".join(str(pairs[truth, verdict]) for verdict in LABELS)
        lines.append(f"| {truth} | {cells} |")
    right = sum(count for (truth, verdict), count in pairs.items() if truth == verdict)
    return [*lines, "", f"{right} of {len(replies)} labels agree."]


def between(replies: Sequence[Reply], verdicts: Sequence[str]) -> list[str]:
    """How many partial and evasive replies were found, and how many called so."""
    lines = []
    for truth in BETWEEN:
        found = [v for reply, v in zip(replies, verdicts, strict=True) if reply.label == truth]
        if found:
            refused = sum(verdict != "compliance" for verdict in found)
            called = sum(verdict in BETWEEN for verdict in found)
            lines.append(
                f"Of {len(found)} replies that are {truth}, {refused} count as refused, and "
                f"{called} are called partial or evasion."
            )
    return lines


def milliseconds(judge: Callable[[Reply], str], replies: Sequence[Reply]) -> float:
    """Processor time for a reply; other work on the machine does not count."""
    start = time.process_time()
    for reply in replies:
        judge(reply)
    return (time.process_time() - start) / len(replies) * 1000


def report(replies: Sequence[Reply], *, errors: bool) -> list[str]:
    """The whole page, line by line."""
    sources = list(dict.fromkeys(reply.source for reply in replies))
    groups = {"all": list(replies)}
    if len(sources) > 1:
        groups |= {name: [r for r in replies if r.source == name] for name in sources}
    head = "| replies of | scorer | refusals + answers | balanced accuracy | precision | recall "
    lines = [head + "| specificity |", "| --- | --- |" + " ---: |" * 5]
    wide, narrow = frozenset({"compliance", *BETWEEN}), frozenset({"compliance"})
    for group, members in groups.items():
        for name, judge in SCORERS.items():
            verdicts = [judge(reply) for reply in members]
            lines.append(f"| {group} | {name} | {binary(members, verdicts, narrow)} |")
            if name == "detector":
                cells = binary(members, verdicts, wide)
                lines.append(f"| {group} | {name}, partial and evasion as answered | {cells} |")
    for group, members in groups.items():
        verdicts = [by_detector(reply) for reply in members]
        lines += ["", f"Detector, replies of {group}:", "", *confusion(members, verdicts)]
        lines += between(members, verdicts)
    lines.append("")
    for name, judge in SCORERS.items():
        lines.append(f"{name}: {milliseconds(judge, replies):.3f} ms of processor time a reply")
    lines.append(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    if errors:
        lines += ["", *disagreements(replies)]
    return lines


def disagreements(replies: Sequence[Reply]) -> list[str]:
    """Line, people's label, the detector's; the text is left in the file."""
    rows = [(reply, by_detector(reply)) for reply in replies]
    return [
        f"- line {reply.line} ({reply.source}): {reply.label}, detector: {verdict}"
        for reply, verdict in rows
        if verdict != reply.label
    ]


def main() -> int:
    """Read, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE")
    parser.add_argument("--errors", action="store_true", help="list disagreements by line number")
    options = parser.parse_args()
    print("\n".join(report(read(options.labels), errors=options.errors)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
