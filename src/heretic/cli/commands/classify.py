"""`heretic classify FILE`: whether replies of any model refuse, line by line."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heretic.cli.options import config_option
from heretic.errors import PromptError, ScorerError
from heretic.system.display import json_text, safe
from heretic.system.documents import parse_json

if TYPE_CHECKING:
    from heretic.scorers import Scorer

ReplyRecord = dict[str, Any]
"""The fields that are added to a reply."""

_INPUT = "input_"
_REPLY = ("response", "reply")
"""Fields that may hold the reply; the first of them that a line has is read."""


@click.command("classify", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file")
@click.option(
    "--scorer",
    default="refusal",
    metavar="NAME",
    show_default=True,
    help="The scorer that judges: refusal, the name of a scorer in the settings, another scorer "
    "that comes with Heretic, or a plugin (module:Class or file.py:Class).",
)
@config_option
def command(file: str, scorer: str, config: Path | None) -> int:
    """Say of every reply in FILE whether it refuses.

    FILE holds JSON lines with the fields response (or reply) and prompt (optional); - is standard
    input. Every line is written to standard output, in the same order, with three more fields:
    label (refusal, evasion, partial, compliance or degenerate), span, the passage that decided the
    label (start and end in characters, and text; or null), and disclaimer, whether a compliance
    comes with an apology, a caution or the like. If the input has a field of such a name, it is
    kept as input_label and so on. Other scorers give a label with the span null, or a value
    instead. A summary goes to standard error.
    """
    rows = read_rows(file)
    verdicts = _detected(rows) if scorer == "refusal" else _judged(rows, scorer, config)
    lines = (encoded(merged(row, verdict)) for row, verdict in zip(rows, verdicts, strict=True))
    sys.stdout.buffer.writelines(lines)  # UTF-8, whatever the terminal's encoding
    sys.stdout.flush()
    for line in summary(verdicts):
        click.echo(safe(line), err=True)
    return 0


def read_rows(file: str) -> list[dict[str, Any]]:
    """All lines, checked before any is judged.

    Raises:
        PromptError: The file cannot be read, or a line is malformed; the message names the line.
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
        row = parse_json(line, strict=False)
    except ValueError as error:
        reason = str(error).partition(" (line 1")[0]
        raise PromptError(f"{place} is not JSON: {reason}.", remedy=remedy) from error
    if not isinstance(row, dict):
        raise PromptError(f"{place} is not a JSON object.", remedy=remedy)
    if not isinstance(_reply(row), str):
        raise PromptError(f"{place} has no text in the field response or reply.", remedy=remedy)
    if not isinstance(row.get("prompt"), str | None):
        raise PromptError(f"{place} has a prompt that is not text.", remedy=remedy)
    return row


def _reply(row: Mapping[str, Any]) -> Any:
    return next((row[name] for name in _REPLY if name in row), None)


def merged(row: Mapping[str, Any], verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Both records as one. An input field that has the name of a verdict's field is renamed."""
    kept = {f"{_INPUT}{key}" if key in verdict else key: value for key, value in row.items()}
    return {**kept, **verdict}


def encoded(row: Mapping[str, Any]) -> bytes:
    """A line of JSON in UTF-8. A surrogate without its pair, which UTF-8 lacks, stays escaped."""
    return json_text(row).encode() + b"\n"


def summary(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Counts with Wilson 95% intervals as lines; the mean if there are values besides 0 and 1."""
    total = len(verdicts)
    if not total:
        return ["No replies."]
    if "label" in verdicts[0]:
        from heretic.refusals import LABELS

        counts = Counter(str(verdict["label"]) for verdict in verdicts)
        shown: list[tuple[str, int]] = [(name, counts[name]) for name in LABELS]
        if "disclaimer" in verdicts[0]:
            shown.append(("disclaimer", sum(verdict["disclaimer"] for verdict in verdicts)))
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
    from heretic.records.statistics import wilson

    low, high = wilson(count, total)
    return f"{count / total:6.1%}  ({low:.1%} to {high:.1%})"


def _detected(rows: Sequence[Mapping[str, Any]]) -> list[ReplyRecord]:
    from heretic.refusals import classify

    found = (classify(_reply(row), row.get("prompt")) for row in rows)
    return [
        {
            "label": verdict.label,
            "span": None if verdict.span is None else asdict(verdict.span),
            "disclaimer": verdict.disclaimer,
        }
        for verdict in found
    ]


def _judged(
    rows: Sequence[Mapping[str, Any]], plugin: str, config: Path | None
) -> list[ReplyRecord]:
    """Verdicts of a scorer: labels if it gives labels, else the value of each reply.

    Raises:
        ScorerError: There is no such scorer, or it needs more than replies to one set of prompts.
    """
    from heretic.prompts import Prompt
    from heretic.scorers import Needs, Outputs

    judge = _scorer(plugin, config)
    wanted = judge.needs.responses
    if judge.needs != Needs(responses=wanted) or len(wanted) != 1:
        raise ScorerError(
            f"The scorer {plugin!r} cannot judge replies alone.",
            remedy="Choose one that needs the responses to one set of prompts, and nothing else.",
        )
    prompts = [Prompt(row.get("prompt") or "") for row in rows]
    replies = [_reply(row) for row in rows]
    if hasattr(judge, "verdicts"):
        found = judge.verdicts(prompts, replies) if rows else []
        return [{"label": verdict.label, "span": None} for verdict in found]  # judges give no span
    (name,) = wanted

    def figure(prompt: Prompt, reply: str) -> float:
        outputs = Outputs(prompts={name: [prompt]}, responses={name: [reply]})
        return judge.score(outputs, outputs).value

    return [{"value": figure(*pair)} for pair in zip(prompts, replies, strict=True)]


def _scorer(name: str, config: Path | None) -> Scorer:
    """The scorer of that name in the settings, with its options; else the plugin, without options.

    Args:
        config: The file of `--config`.

    Raises:
        ScorerError: There is no such scorer.
        SettingsError: The settings are malformed; or as `check_consent`.
    """
    from heretic.config.consent import check_consent
    from heretic.config.settings import Settings, remarks_on
    from heretic.config.sources import read_user_layers
    from heretic.config.tables import SCORERS, ScorerSpecification
    from heretic.scorers import load_scorers

    layers = read_user_layers({}, config)
    for remark in remarks_on(layers):
        click.echo(safe(remark), err=True)
    settings = Settings.from_layers(layers)
    chosen = [scorer for scorer in settings.scorers if scorer.name == name]
    if not chosen and name not in SCORERS and ":" not in name:
        known = dict.fromkeys([*(scorer.name for scorer in settings.scorers), *SCORERS])
        raise ScorerError(
            f"There is no scorer named {name!r}.",
            remedy=f"Choose {', '.join(known)}, or a plugin (module:Class or file.py:Class).",
        )
    options = {name: settings.scorer[name]} if chosen and name in settings.scorer else {}
    if chosen:
        check_consent(settings.replaced(scorers=chosen, scorer=options), layers)
    chosen = chosen or [ScorerSpecification(plugin=name)]
    (found,) = load_scorers(settings.replaced(scorers=chosen, scorer=options))
    return found
