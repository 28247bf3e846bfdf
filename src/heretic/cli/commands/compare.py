"""`heretic compare A B`: how a checkpoint differs from its original, and how both score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from heretic.cli.commands.evaluate import differences_json, scores_json
from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options
from heretic.errors import ModelError
from heretic.events import Notice, Reporter
from heretic.system.display import json_text, safe
from heretic.system.files import expanded
from heretic.system.models import check_model_named

if TYPE_CHECKING:
    from rich.console import Console

    from heretic.compare.checkpoints import CheckpointComparison
    from heretic.compare.claims import Claim
    from heretic.config.settings import Settings
    from heretic.pipeline.single import Comparison
    from heretic.records.trial import Score


@click.command("compare", cls=SettingsCommand)
@click.argument("model", metavar="A")
@click.argument("original", metavar="B")
@click.option(
    "--scores/--no-scores",
    default=True,
    help="Whether both are scored on the evaluation prompts, which takes minutes. Default: scores.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON; progress goes to standard error."
)
@settings_options
def command(
    model: str, original: str, scores: bool, as_json: bool, options: SettingsOptions
) -> int:
    """Show how A differs from B, its original: tensors, files, scores.

    A and B are folders or Hub ids, and either may be an adapter. Weights are read from safetensors
    files, one tensor at a time. The figures that A's card claims are shown beside those measured.
    """
    settings = options.load(model=original, evaluate_model=model)
    for name, revision in ((model, None), (original, settings.model_commit)):
        if not expanded(name).is_dir():  # of a folder, weights alone can be compared
            check_model_named(name, revision)
    return compare(settings, with_scores=scores, as_json=as_json)


def compare(settings: Settings, *, with_scores: bool, as_json: bool) -> int:
    """Compare `evaluate_model` with `model` and print the result."""
    from rich.console import Console

    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.display.text import make_console
    from heretic.compare.checkpoints import compare_checkpoints
    from heretic.compare.side import open_side

    assert settings.evaluate_model is not None
    console = make_console()
    with make_reporter(Console(stderr=True) if as_json else console) as display:
        judged = open_side(settings.evaluate_model)
        original = open_side(settings.model, settings.model_commit)
        found = compare_checkpoints(judged, original, display)
        display.close()
        if not as_json:
            show(found, console)
        scored = _scored(settings, display) if with_scores else "--no-scores was given"
    if as_json:
        click.echo(json_text(to_json(found, scored, settings.max_response_length), indent=2))
    else:
        show_scores(settings, found.claims, scored, console)
    return 0


def _scored(settings: Settings, reporter: Reporter) -> Comparison | str:
    """The scores of both models; why there are none, if they cannot be compared."""
    from heretic.pipeline import single

    try:
        return single.compare(settings, reporter, thoroughly=True)
    except ModelError as error:  # other vocabularies, or a model that cannot be loaded
        reporter.emit(Notice(f"The models were not scored: {error}", "warning"))
        return str(error)


def to_json(found: CheckpointComparison, scored: Comparison | str, short: int) -> dict[str, Any]:
    """The whole comparison, for programs; docs/compare.md lists the keys.

    Args:
        short: New tokens of a reply that is scored, where it is not a long one.
    """
    from heretic.records.concerns import concerns

    data = found.to_dict()
    if isinstance(scored, str):
        data |= {"scores": None, "baseline": None, "score_differences": None}
        data |= {"long_replies": None, "concerns": None, "not_scored": scored}
        return data | {"claims": claims_json(found.claims, None)}
    long = scored.long_replies
    return data | {
        "scores": scores_json(scored.judged),
        "baseline": scores_json(scored.baseline),
        "score_differences": differences_json(scored.baseline, scored.judged),
        "long_replies": None if long is None else long.to_dict(),
        "concerns": None if long is None else concerns(long.before, long.after, short),
        "not_scored": None,
        "claims": claims_json(found.claims, scored.measured),
    }


def claims_json(claims: Sequence[Claim], measured: Sequence[Score] | None) -> list[dict[str, Any]]:
    """Figures of a card, each with the one measured; None if it was not."""
    values = {score.name: score.value for score in measured or ()}
    return [{**claim.to_dict(), "measured": values.get(claim.name)} for claim in claims]


def show(found: CheckpointComparison, console: Console) -> None:
    """Print the verdict, the tensors that differ, and what else does."""
    from rich.text import Text

    from heretic.cli.display.comparison import differences_table, sentences

    console.print(Text(safe(found.verdict()), style="bold"))
    if found.differences:
        console.print()
        console.print(differences_table(found))
    console.print()
    for sentence in sentences(found):
        console.print(Text(safe(sentence)))


def show_scores(
    settings: Settings, claims: Sequence[Claim], scored: Comparison | str, console: Console
) -> None:
    """Print the scores of both models, and the figures that the card claims beside them."""
    from rich.text import Text

    from heretic.cli.display.comparison import claims_table
    from heretic.cli.display.tables import changes_table, scores_table
    from heretic.records.concerns import concerns

    assert settings.evaluate_model is not None
    measured = None if isinstance(scored, str) else scored.measured
    if not isinstance(scored, str):
        rows = [(settings.model, scored.baseline), (settings.evaluate_model, scored.judged)]
        console.print()
        console.print(scores_table(rows, with_difference=True))
        long = scored.long_replies
        if long is not None:
            heading = f"With replies of up to {long.tokens} tokens"
            console.print()
            console.print(changes_table(long.before, long.after, heading=heading))
            for text in concerns(long.before, long.after, settings.max_response_length):
                console.print(Text(safe(f"Look at this: {text}."), style="yellow"))
    if claims:
        console.print()
        console.print(claims_table(claims, measured))
