"""Tables: the front, scores before and after, replies before and after, one plan in detail.

Functions return `rich` renderables and print nothing. All cells are `Text`, never markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from heretic.cli.text import clip, safe, title
from heretic.records import KERNEL_FIGURES, Plan, Score, Trial

ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class Replies:
    """What the original and the edited model answered to one prompt."""

    prompt: str
    before: str
    after: str


def direction_text(plan: Plan) -> str:
    """Scope, index and rank of a plan's direction, e.g. `global 17.25` or `per layer x 2`."""
    index = "" if plan.direction_index is None else f" {plan.direction_index:.2f}"
    return plan.direction_scope + index + (f" x {plan.rank}" if plan.rank > 1 else "")


def scores_text(scores: Iterable[Score]) -> str:
    """Scores in one line, as displayed, e.g. `refusals 3/100, KL divergence 0.16`."""
    return ", ".join(f"{title(score.name)} {safe(score.display)}" for score in scores)


def front_table(
    trials: Sequence[Trial],
    baseline: Sequence[Score] = (),
    *,
    limit: int | None = None,
    heading: str | None = None,
) -> Table:
    """The front, best first, with the index that `trial_index` takes.

    Args:
        trials: The front, sorted as `records.front` sorts it (refusals, then KL divergence).
        baseline: Scores of the unedited model, shown as the first row.
        limit: Show at most this many trials, and say how many are left out.
        heading: Title above the table.
    """
    names = _score_names([baseline, *(trial.scores for trial in trials)])
    table = _table(heading)
    table.add_column("index", justify="right", no_wrap=True, style="bold")
    table.add_column("trial", justify="right", no_wrap=True)
    for name in names:
        table.add_column(title(name), justify="right")
    table.add_column("direction")
    if baseline:
        cells = [_display(baseline, name) for name in names]
        table.add_row(*_cells("", ORIGINAL, *cells, ""), style="dim")
    shown = trials if limit is None else trials[:limit]
    for index, trial in enumerate(shown):
        cells = [_display(trial.scores, name) for name in names]
        table.add_row(*_cells(index, trial.number, *cells, direction_text(trial.plan)))
    if len(shown) < len(trials):
        more = f"and {len(trials) - len(shown)} more"
        table.add_row(*_cells("…", "", *("" for _ in names), more), style="dim")
    return table


def scores_table(
    rows: Mapping[str, Sequence[Score]] | Iterable[tuple[str, Sequence[Score]]],
    *,
    heading: str | None = None,
    label: str = "model",
) -> Table:
    """One row of scores per model, e.g. `{"original": ..., "edited": ..., "from disk": ...}`."""
    items = list(rows.items() if isinstance(rows, Mapping) else rows)
    names = _score_names(scores for _, scores in items)
    table = _table(heading)
    table.add_column(label)
    for name in names:
        table.add_column(title(name), justify="right")
    for row, scores in items:
        table.add_row(*_cells(row, *(_display(scores, name) for name in names)))
    return table


def before_after_table(
    rows: Iterable[Replies],
    *,
    limit: int = 240,
    heading: str | None = None,
    labels: tuple[str, str] = ("original", "edited"),
) -> Table:
    """Prompts with the replies of the two models, each cut to `limit` characters."""
    table = Table(
        title=_heading(heading),
        title_justify="left",
        box=box.SIMPLE,
        show_lines=True,
        show_edge=False,
    )
    for name, ratio in (("prompt", 2), (labels[0], 3), (labels[1], 3)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for row in rows:
        cells = (row.prompt, row.before, row.after)
        table.add_row(*_cells(*(clip(" ".join(cell.split()), limit) for cell in cells)))
    return table


def plan_table(plan: Plan, *, heading: str | None = None) -> Table:
    """A plan in detail: its direction, and one row per component's kernel."""
    table = _table(heading)
    for name in ("component", *KERNEL_FIGURES):
        table.add_column(name, justify="left" if name == "component" else "right")
    for component, kernel in plan.kernels:
        largest, layer, smallest, distance = kernel.figures()
        if largest == 0 and smallest == 0:
            table.add_row(*_cells(component, "off", "", "", ""))
            continue
        shown = [f"{figure:.2f}" for figure in (largest, layer, smallest)]
        table.add_row(*_cells(component, *shown, "free" if distance is None else f"{distance:.2f}"))
    table.caption = _heading(
        f"direction: {direction_text(plan)}; row normalization: {plan.row_normalization}"
    )
    table.caption_justify = "left"
    return table


def _table(heading: str | None) -> Table:
    return Table(
        title=_heading(heading), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False
    )


def _heading(heading: str | None) -> Text | None:
    return None if heading is None else Text(safe(heading), style="bold")


def _cells(*values: object) -> list[Text]:
    """Plain text cells, so that nothing in them is read as markup."""
    return [Text(safe(str(value))) for value in values]


def _score_names(rows: Iterable[Sequence[Score]]) -> list[str]:
    """Names of all scores, in order of first appearance."""
    return list(dict.fromkeys(score.name for scores in rows for score in scores))


def _display(scores: Sequence[Score], name: str) -> str:
    return next((score.display for score in scores if score.name == name), "-")
