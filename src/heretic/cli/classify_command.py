"""`heretic classify FILE`: whether replies refuse, line by line, for replies from anywhere."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from heretic.errors import PromptError, ScorerError

Judge = Callable[[str, str | None], Mapping[str, Any]]
"""From a reply and what it replies to (None if that is not known) to the fields of a verdict."""

KEYWORD = "heretic.scorers.keyword:KeywordRefusals"
_INPUT = "input_"


@click.command("classify", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file")
@click.option(
    "--scorer",
    default="refusal",
    metavar="NAME",
    show_default=True,
    help="Who judges: refusal, keyword, or a scorer plugin, module:Class or file.py:Class.",
)
def command(file: str, scorer: str) -> int:
    """Say of every reply in FILE whether it refuses.

    FILE holds JSON lines with the fields prompt (optional) and response; - is standard input. The
    same lines go to standard output, in the same order, with label (refusal, partial, compliance
    or degenerate) and span, the passage that decided it: start, end and text, in characters, or
    null. A field of the input that has such a name is kept as input_label, input_span. Other
    scorers than refusal give value, and the summary goes to standard error.
    """
    rows = read_rows(file)
    judge = (
        _detector if scorer == "refusal" else _plugin(KEYWORD if scorer == "keyword" else scorer)
    )
    verdicts = [judge(row["response"], row.get("prompt")) for row in rows]
    lines = (encoded(merged(row, verdict)) for row, verdict in zip(rows, verdicts, strict=True))
    _write(lines)
    for line in summary(verdicts):
        click.echo(line, err=True)
    return 0


def read_rows(file: str) -> list[dict[str, Any]]:
    """All lines, checked before any is judged.

    Raises:
        PromptError: The file cannot be read, or a line is malformed; the line's number is told.
    """
    name = "standard input" if file == "-" else file
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise PromptError(f"{name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PromptError(f"{name}, line {line}, is not UTF-8.") from error
    # Not splitlines(): JSON strings may hold separators that are line ends to Python only.
    numbered = enumerate(text.split("\n"), 1)
    return [_row(line, f"{name}, line {number},") for number, line in numbered if line.strip()]


def _row(line: str, place: str) -> dict[str, Any]:
    remedy = 'Every line should be a JSON object: {"prompt": "...", "response": "..."}.'
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise PromptError(f"{place} is no JSON: {reason}.", remedy=remedy) from error
    if not isinstance(row, dict):
        raise PromptError(f"{place} is no JSON object.", remedy=remedy)
    if not isinstance(row.get("response"), str):
        raise PromptError(f"{place} has no text in the field response.", remedy=remedy)
    if not isinstance(row.get("prompt"), str | None):
        raise PromptError(f"{place} has a prompt that is no text.", remedy=remedy)
    return row


def merged(row: Mapping[str, Any], verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The input's fields and the verdict's; of one name, the input's is renamed."""
    kept = {f"{_INPUT}{key}" if key in verdict else key: value for key, value in row.items()}
    return {**kept, **verdict}


def encoded(row: Mapping[str, Any]) -> bytes:
    """A line of JSON in UTF-8; half a surrogate pair, which UTF-8 has not, stays escaped."""
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"


def summary(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Counts with Wilson 95% intervals; the mean where values are no counts."""
    total = len(verdicts)
    if not total:
        return ["No replies."]
    if "label" in verdicts[0]:
        from heretic.refusals import LABELS

        counts = Counter(str(verdict["label"]) for verdict in verdicts)
        shown: list[tuple[str, int]] = [(name, counts[name]) for name in LABELS]
    else:
        values = [float(verdict["value"]) for verdict in verdicts]
        if not set(values) <= {0.0, 1.0}:
            return [f"{total} replies, mean value {math.fsum(values) / total:.4g}"]
        shown = [("value 1", sum(value == 1.0 for value in values))]
    width = max(len(name) for name, _ in shown)
    return [f"{total} {'reply' if total == 1 else 'replies'}"] + [
        f"{name:<{width}}  {count:>{len(str(total))}}  {_rate(count, total)}"
        for name, count in shown
    ]


def _rate(count: int, total: int) -> str:
    low, high = wilson(count, total)
    return f"{count / total:6.1%}  ({low:.1%} to {high:.1%})"


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95% interval of a rate (Wilson 1927)."""
    z = 1.959964
    rate = count / total
    middle = rate + z * z / (2 * total)
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def _detector(response: str, prompt: str | None) -> dict[str, Any]:
    from heretic.refusals import classify

    verdict = classify(response, prompt)
    span = verdict.span
    place = None if span is None else {"start": span.start, "end": span.end, "text": span.text}
    return {"label": verdict.label, "span": place}


def _plugin(plugin: str) -> Judge:
    """A scorer's figure for one reply at a time.

    Raises:
        ScorerError: There is no such scorer, or it reads more than replies to one set of prompts.
    """
    if ":" not in plugin:
        raise ScorerError(
            f"There is no scorer {plugin!r}.",
            remedy="Name refusal, keyword, or a plugin as module:Class or file.py:Class.",
        )
    from heretic.config import Settings
    from heretic.prompts import Prompt
    from heretic.scorers import Outputs
    from heretic.scorers.registry import plugin_class

    scorer = plugin_class(plugin)(Settings(model="none"), name="classify", optimization="none")
    if scorer.needs.logits or len(scorer.needs.responses) != 1:
        raise ScorerError(
            f"The scorer {plugin!r} cannot judge replies alone.",
            remedy="It should need the responses to one set of prompts, and no logits.",
        )
    (name,) = scorer.needs.responses

    def judge(response: str, prompt: str | None) -> dict[str, Any]:
        outputs = Outputs(prompts={name: [Prompt(prompt or "")]}, responses={name: [response]})
        return {"value": scorer.score(outputs, outputs).value}

    return judge


def _write(lines: Iterator[bytes]) -> None:
    """Lines to standard output as UTF-8, whatever the terminal's encoding; a reader may leave."""
    out = sys.stdout.buffer
    try:
        for line in lines:
            out.write(line)
        out.flush()
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # nothing more is written at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
