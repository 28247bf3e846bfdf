"""Tables: the front, scores before and after, replies before and after, one plan in detail.

Functions return `rich` renderables and print nothing. All cells are `Text`, never markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rich import box
from rich.table import Table
from rich.text import Text

from heretic.cli.display.text import consecutive, longest_word, text_cells, title
from heretic.harness.results import PairedMetric, how_compared
from heretic.records.categories import CategoryTable
from heretic.records.plan import FittedKernel, Plan
from heretic.records.selection import names_by_row, row_within
from heretic.records.statistics import difference_text, indistinguishable, paired
from heretic.records.trial import Score, Trial, ends_text
from heretic.system.display import clip, safe

ORIGINAL = "original"

_PROMPTS = {
    "evaluation": "prompts of the search",
    "held_out": "held-out prompts",
    "spared": "spared prompts",
}
"""What `CategoryTable.prompts` means."""


@dataclass(frozen=True, slots=True)
class Replies:
    """What the original and the edited model answered to one prompt."""

    prompt: str
    before: str
    after: str


def direction_text(plan: Plan) -> str:
    """What a plan's vectors are, e.g. `global 17.25`, `per layer x 2` or `fit 0f3a21 at 2.50`."""
    if plan.fits:
        positions = {kernel.figures()[0] for _, kernel in plan.kernels}
        places = " and ".join(f"{position:.2f}" for position in sorted(positions))
        names = ", ".join(digest[:6] for digest in plan.fits)
        return f"fit {names} at {places}" + (f" x {plan.rank}" if plan.rank > 1 else "")
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
    statistics: bool = True,
) -> Table:
    """The front, best first, with the indices and names that `trial_index` takes.

    Args:
        trials: The front, sorted as `records.front` sorts it (refusals, then KL divergence).
        baseline: Scores of the unedited model, shown as the first row.
        limit: Show at most this many trials, and say how many are left out.
        heading: Title above the table.
        statistics: Whether to show intervals, and which rows the prompts do not tell apart.
    """
    display = Score.with_interval if statistics else _plain
    likes = _likes(trials) if statistics else {}
    names = _score_names([baseline, *(trial.scores for trial in trials)])
    table = _table(heading)
    table.add_column("index", justify="right", no_wrap=True, style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("trial", justify="right", no_wrap=True)
    for name in names:
        table.add_column(title(name), justify="right", overflow="fold")
    directions = list(dict.fromkeys(direction_text(trial.plan) for trial in trials))
    if len(directions) > 1:
        table.add_column("direction", overflow="fold")
    if likes:
        table.add_column("like", overflow="fold")
    table.caption = _heading(_front_caption(directions, bool(likes)), "dim")
    table.caption_justify = "left"
    if baseline:
        cells = [_display(baseline, name, display) for name in names]
        table.add_row(*text_cells("", ORIGINAL, "", *cells), style="dim")
    shown = trials if limit is None else trials[:limit]
    for index, (trial, name) in enumerate(zip(shown, name_cells(trials), strict=False)):
        cells = [_display(trial.scores, name, display) for name in names]
        like = [likes.get(index, "")] if likes else []
        plan = [direction_text(trial.plan)] if len(directions) > 1 else []
        table.add_row(*text_cells(index, name, trial.number, *cells, *plan, *like))
    if len(shown) < len(trials):
        more = f"and {len(trials) - len(shown)} more"
        table.add_row(*text_cells("…", more), style="dim")
    return table


def _front_caption(directions: Sequence[str], likes: bool) -> str:
    """What every row has in common needs no column; what columns mean is said once."""
    parts = [f"direction: {directions[0]}"] if len(directions) == 1 else []
    if likes:
        parts.append("[ ]: 95% interval; like: rows that these prompts do not tell apart")
    return "; ".join(parts)


def name_cells(front: Sequence[Trial]) -> list[str]:
    """The names of each row, as `trial_index` takes them; none if there is nothing to choose."""
    return [", ".join(names) if len(front) > 1 else "" for names in names_by_row(front)]


def bound_text(front: Sequence[Trial], most: int) -> tuple[str, str]:
    """The trial that `max_refusals` chooses, in one line, and the style of that line.

    Args:
        front: Not empty.

    Raises:
        SettingsError: The first objective is not a count of prompts that is minimised.
    """
    found = row_within(front, most)
    trial = front[found.row]
    chosen = f"index {found.row}, trial {trial.number}: {scores_text(trial.scores)}"
    if found.met:
        return f"Best with at most {most} refusals: {chosen}", "green"
    return f"No trial has at most {most} refusals yet; the nearest: {chosen}", "yellow"


def scores_table(
    rows: Mapping[str, Sequence[Score]] | Iterable[tuple[str, Sequence[Score]]],
    *,
    heading: str | None = None,
    label: str = "model",
    with_difference: bool = False,
    note: str = "",
) -> Table:
    """One row of scores per model, e.g. `{"original": ..., "edited": ..., "from disk": ...}`.

    Args:
        note: A line below the table.
        with_difference: Whether a last row shows how the last model differs from the first.
    """
    items = list(rows.items() if isinstance(rows, Mapping) else rows)
    names = _score_names(scores for _, scores in items)
    table = _table(heading)
    table.add_column(label)
    for name in names:
        table.add_column(title(name), justify="right")
    for row, scores in items:
        cells = [_display(scores, name, Score.with_interval) for name in names]
        table.add_row(*text_cells(row, *cells))
    if with_difference and len(items) > 1:
        differences = difference_cells(items[0][1], items[-1][1])
        table.add_row(*text_cells("difference", *(differences.get(name, "") for name in names)))
    if note:
        table.caption = _heading(note, "dim")
        table.caption_justify = "left"
    return table


def changes_table(
    before: Sequence[Score], after: Sequence[Score], *, heading: str | None = None
) -> Table:
    """One row per score: of the original, of the edited model, and the change with its interval."""
    table = _table(heading)
    table.add_column("")
    for name in ("original", "edited", "change"):
        table.add_column(name, justify="right")
    others = {score.name: score for score in before}
    for score in after:
        other = others.get(score.name)
        shown = "" if other is None else other.display
        change = difference_text(other, score)
        table.add_row(*text_cells(title(score.name), shown, score.display, change))
    table.caption = _heading("[ ]: 95% interval of the change from prompt to prompt", "dim")
    table.caption_justify = "left"
    return table


def category_table(found: CategoryTable) -> Table:
    """A share by category of the prompts, before and after the edit, with intervals."""
    table = _table(f"{title(found.score)} by category, {_PROMPTS[found.prompts]}")
    table.add_column("category", overflow="fold")
    for name in ("n", ORIGINAL, "edited"):
        table.add_column(name, justify="right", min_width=longest_word(name))
    for row in found.rows:
        table.add_row(*text_cells(*row.texts()))
    return table


def difference_cells(before: Sequence[Score], after: Sequence[Score]) -> dict[str, str]:
    """By name of the score, the difference of two models on the same prompts, with its test."""
    others = {score.name: score for score in before}
    cells = {}
    for score in after:
        other = others.get(score.name)
        test = other and paired(other.values, score.values)
        if test:
            ends = ends_text(test.interval)
            cells[score.name] = f"{test.difference:+.3g} [{ends}], p {test.p:.2g}"
    return cells


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
        table.add_row(*text_cells(*(clip(" ".join(cell.split()), limit) for cell in cells)))
    return table


def benchmark_table(
    rows: Sequence[PairedMetric], *, edited: str, heading: str | None = None
) -> Table:
    """Figures of the original and the edited model, with their difference and its interval.

    A difference whose interval excludes 0 is called better or worse.
    """
    table = _table(heading)
    table.collapse_padding = True
    table.add_column("task\nmetric", overflow="fold")
    for name in ("n", ORIGINAL, edited, "difference\n95% interval"):
        table.add_column(name, justify="right", min_width=longest_word(name))
    table.add_column("", no_wrap=True)
    for row in rows:
        task, metric, n, before, after, difference, interval = row.texts()
        before, after = (figure.replace(" \u00b1", "\n\u00b1") for figure in (before, after))
        cells = (f"{task}\n{metric}", n, before, after, f"{difference}\n{interval}", row.verdict)
        table.add_row(*text_cells(*cells), style="bold" if row.verdict else "")
    if rows:
        table.caption = _heading(how_compared(rows))
        table.caption_justify = "left"
    return table


def plan_table(plan: Plan, *, heading: str | None = None) -> Table:
    """A plan in detail: its direction, and one row per component's kernel."""
    table = _table(heading)
    table.add_column("component", no_wrap=True)
    for name in plan.figure_names:
        table.add_column(name, justify="right")
    for component, kernel in plan.kernels:
        if isinstance(kernel, FittedKernel):
            table.add_row(*text_cells(component, *(f"{figure:.2f}" for figure in kernel.figures())))
            continue
        largest, layer, smallest, distance = kernel.figures()
        if largest == 0 and smallest == 0:
            table.add_row(*text_cells(component, "off", "", "", ""))
            continue
        shown = [f"{figure:.2f}" for figure in (largest, layer, smallest)]
        table.add_row(
            *text_cells(component, *shown, "free" if distance is None else f"{distance:.2f}")
        )
    table.caption = _heading(
        f"{'vectors' if plan.fits else 'direction'}: {direction_text(plan)}; "
        f"row normalization: {plan.row_normalization}"
    )
    table.caption_justify = "left"
    return table


def _table(heading: str | None) -> Table:
    return Table(
        title=_heading(heading), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False
    )


def _heading(heading: str | None, style: str = "bold") -> Text | None:
    return None if heading is None else Text(safe(heading), style=style)


def _score_names(rows: Iterable[Sequence[Score]]) -> list[str]:
    """Names of all scores, in the order in which they first appear."""
    return list(dict.fromkeys(score.name for scores in rows for score in scores))


def _display(scores: Sequence[Score], name: str, display: Callable[[Score], str]) -> str:
    return next((display(score) for score in scores if score.name == name), "-")


def _plain(score: Score) -> str:
    return score.display


def _likes(trials: Sequence[Trial]) -> dict[int, str]:
    """By row, the other rows that the prompts do not tell apart from it, e.g. `1-3, 5`."""
    pairs = [
        (first, second)
        for first, second in combinations(range(len(trials)), 2)
        if indistinguishable(trials[first].scores, trials[second].scores)
    ]
    likes: dict[int, list[int]] = {}
    for first, second in pairs:
        likes.setdefault(first, []).append(second)
        likes.setdefault(second, []).append(first)
    return {row: _ranges(sorted(others)) for row, others in likes.items()}


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text; three or more without a gap are shortened to first-last."""
    parts = [
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run))
        for run in consecutive(numbers)
    ]
    return ", ".join(parts)
