"""`heretic evaluate MODEL --against OTHER`: score a model against its original."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from heretic.cli.options import SettingsCommand, SettingsOptions, settings_options
from heretic.records.statistics import paired
from heretic.records.trial import Score

if TYPE_CHECKING:
    from heretic.config.settings import Settings


@click.command("evaluate", cls=SettingsCommand)
@click.argument("model")
@click.option(
    "--against", metavar="OTHER", required=True, help="The original model, for KL(OTHER || MODEL)."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print scores as JSON; progress goes to standard error."
)
@settings_options
def command(model: str, against: str, as_json: bool, options: SettingsOptions) -> int:
    """Score MODEL against OTHER, its original."""
    return evaluate(options.load_models(model=against, evaluate_model=model), as_json=as_json)


def evaluate(settings: Settings, *, as_json: bool) -> int:
    """Score `evaluate_model` against `model` and print the result."""
    from rich.console import Console

    from heretic.cli.display.reporter import make_reporter
    from heretic.cli.display.tables import category_table, scores_table
    from heretic.cli.display.text import make_console
    from heretic.pipeline import single

    console = make_console()
    with make_reporter(Console(stderr=True) if as_json else console) as display:
        result = single.compare(settings, display)
    assert settings.evaluate_model is not None
    if as_json:
        data = {
            "model": settings.evaluate_model,
            "against": settings.model,
            "scores": scores_json(result.judged),
            "baseline": scores_json(result.baseline),
            "differences": differences_json(result.baseline, result.judged),
            "categories": [table.to_dict() for table in result.categories],
        }
        click.echo(json.dumps(data, indent=2))
    else:
        rows = [(settings.model, result.baseline), (settings.evaluate_model, result.judged)]
        console.print(scores_table(rows, with_difference=True))
        for found in result.categories:
            console.print()
            console.print(category_table(found))
    return 0


def scores_json(scores: Sequence[Score]) -> dict[str, Any]:
    """Scores by name, for programs."""
    return {
        score.name: {"value": score.figure, "display": score.display, "interval": score.interval}
        for score in scores
    }


def differences_json(before: Sequence[Score], after: Sequence[Score]) -> dict[str, Any]:
    """Paired tests by name of the score, for programs. They need scores with a value per prompt."""
    others = {score.name: score.values for score in before}
    found = {score.name: paired(others.get(score.name, ()), score.values) for score in after}
    return {name: asdict(test) for name, test in found.items() if test is not None}
