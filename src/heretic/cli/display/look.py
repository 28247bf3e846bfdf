"""What `heretic look` prints: tokens of directions, cosines, coloured texts, effects of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from heretic.cli.display.text import longest_word, text_cells, title
from heretic.records.effects import CHANGES, Change, LayerEffects, Vector, named
from heretic.report.directions import Floats, LayerWords, TokenWeight
from heretic.report.tokens import LEVELS, ColouredText
from heretic.system.display import safe, visible

WIDEST_TOKEN = 24
"""Cells of a token that are shown."""

WORDS_LEGEND = (
    "The direction through the gain of the final norm and the output head. Best first; a space is "
    "shown as ·. In brackets: standard deviations of the first token from the mean of all."
)
MAP_LEGEND = (
    "Tenths: 9 is a cosine of 0.9 or more, -3 one of -0.3 to -0.4, a dot less than 0.1 either way."
)
UNLIKE = (
    "The runs are of different models: their directions lie in one space only if one model was "
    "trained from the other."
)
_TOWARD, _AWAY = (168, 62, 20), (26, 93, 160)
_HEADINGS: dict[Change, str] = {
    "removed": "The direction taken out after one layer: replies to the first {} bad prompts",
    "added": "The direction at its length added after one layer: replies to the first {} good "
    "prompts",
}


def words_table(found: Sequence[LayerWords], width: int) -> RenderableType:
    """A row for each layer: the tokens that its direction promotes and suppresses."""
    room = max(16, (min(width, 160) - 18) // 2)
    table = _table("Tokens of each layer's direction")
    table.add_column("layer", justify="right", no_wrap=True)
    for name in ("promoted", "suppressed"):
        table.add_column(name, width=room)
    for one in found:
        kinds = (_lines(one.promoted, room), _lines(one.suppressed, room))
        table.add_row(*text_cells(one.layer, *kinds))
    return Group(table, Text(WORDS_LEGEND, style="dim"))


def _table(heading: str) -> Table:
    return Table(box=box.SIMPLE, title=heading, title_style="bold", title_justify="left")


def _lines(tokens: Sequence[TokenWeight], room: int) -> str:
    """All tokens, in lines of whole tokens."""
    if not tokens:
        return "-"
    lines = [f"({abs(tokens[0].deviations):.1f})"]
    for place, token in enumerate(tokens):
        text = _cut(visible(token.text), min(WIDEST_TOKEN, room))
        longer = f"{lines[-1]}{'  ' if place else ' '}{text}"
        if cell_len(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(text)
    return "\n".join(lines)


def _cut(text: str, cells: int) -> str:
    shown = Text(text)
    shown.truncate(cells, overflow="ellipsis")
    return shown.plain


def cosines_shown(found: Floats, other: bool, unlike: bool, width: int) -> RenderableType:
    """A map of cosines in tenths, of as many layers as fit; for two runs, a table as well."""
    parts: list[RenderableType] = []
    if other:
        parts.append(_matches(found))
    step = max(1, math.ceil(found.shape[1] * 2 / max(30, width - 6)))
    heading = "Cosines of the layers of the first run (down) and of the second (across)"
    heading = heading if other else "Cosines between the directions of layers"
    heading += f", every {step} layers" if step > 1 else ""
    parts.append(Text(heading, style="bold"))
    columns = range(0, found.shape[1], step)
    labels = "".join(f"{column:<4}" for column in columns[::2])  # of every other one, for room
    parts.append(Text(f"layer  {labels}".rstrip(), style="dim"))
    for row in range(0, found.shape[0], step):
        line = Text(f"{row:>5} ")
        for column in columns:
            line.append(*_tenth(float(found[row, column])))
        parts.append(line)
    parts.append(Text(MAP_LEGEND, style="dim"))
    if unlike:
        parts.append(Text(UNLIKE, style="yellow"))
    return Group(*parts)


def _tenth(value: float) -> tuple[str, Style]:
    if math.isnan(value):
        return "  ", Style()
    tenths = min(9, int(abs(value) * 10 + 1e-9))
    if tenths == 0:
        return " ·", Style(dim=True)
    text = f"{-tenths if value < 0 else tenths:>2}"
    return text, _style(value)


def _matches(found: Floats) -> Table:
    """For each layer of the first run: the same layer of the second, and the most alike one."""
    table = _table("The most alike layers of the second run")
    for name in ("layer", "same layer", "most alike", "cosine"):
        table.add_column(name, justify="right", no_wrap=True)
    equal = found.shape[0] == found.shape[1]
    for layer, row in enumerate(found):
        same = f"{row[layer]:.3f}" if equal and not math.isnan(row[layer]) else "-"
        known = [place for place, value in enumerate(row) if not math.isnan(value)]
        best = max(known, key=lambda place: float(row[place]), default=None)
        cells = ("-", "-") if best is None else (str(best), f"{row[best]:.3f}")
        table.add_row(str(layer), same, *cells)
    return table


def tokens_shown(
    texts: Sequence[ColouredText], why: str, console: Console, page: Path | None
) -> RenderableType:
    """Coloured texts; without colours, a line for each token."""
    parts: list[RenderableType] = []
    coloured = console.color_system is not None
    for number, text in enumerate(texts):
        if number == 0:
            reason = f", {why}; --layer chooses another" if why else ""
            parts.append(Text(f"Layer {text.layer}{reason}."))
        parts += ["", _legend(text) if coloured else Text(f"1.00 is {text.told_scale()}.")]
        parts.append(_coloured(text) if coloured else _token_table(text))
        if coloured:
            parts.append(_strongest(text))
    if page is not None:
        parts += ["", Text(safe(f"The page is {page}."))]
    return Group(*parts)


def _legend(text: ColouredText) -> Text:
    line = Text()
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        line.append(f" {share:+.1f} " if share else "  0  ", _style(share))
    line.append(f" 1 is {text.told_scale()}", "dim")
    return line


def _coloured(text: ColouredText) -> Text:
    shown = Text()
    begin = len(text.tokens) - text.replied
    for place, (token, level) in enumerate(zip(text.tokens, text.levels, strict=True)):
        style = _style(level / LEVELS) + Style(underline=place >= begin)
        lines = token.count("\n")
        spaced = " ".join(map(visible, token.split(" ")))  # a real · stays one
        shown.append(visible(token) if lines else spaced, style)
        shown.append("\n" * min(lines, 1))
    return shown


def _strongest(text: ColouredText, count: int = 5) -> Text:
    """The tokens that lie farthest along the direction, after the first token, in words."""
    first = 1 if len(text.tokens) > 1 else 0
    rows = list(zip(text.tokens, text.shares, strict=True))[first:]
    finite = [(token, share) for token, share in rows if share is not None]
    order = sorted(finite, key=lambda row: -row[1])[:count]
    named = "  ".join(f"{visible(token)} {share:+.2f}" for token, share in order)
    return Text(f"Farthest after the first token: {named}", style="dim")


def _token_table(text: ColouredText) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for token, share, level in zip(text.tokens, text.shares, text.levels, strict=True):
        bar = ("+" if level > 0 else "-") * abs(level)
        shown = visible(token)
        shown += " " * (16 - cell_len(shown))
        table.add_row(*text_cells("-" if share is None else f"{share:+.2f}", f"{shown} {bar}"))
    return table


def effects_shown(found: LayerEffects) -> RenderableType:
    """Two tables with a row per layer, and what follows."""
    parts: list[RenderableType] = []
    for change in CHANGES:
        if change in found.originals:
            parts += [_effects_table(found, change), Text(safe(found.conclusion(change))), ""]
    told = [Text(safe(f"Left out: {reason}."), style="dim") for reason in found.left_out]
    note = (
        "* marks layers that differ from the original "
        "and from the random vector (paired tests, corrected for the number of layers). A layer "
        "without * may still matter together with others."
    )
    return Group(*parts, *told, Text(note, style="dim"))


def _effects_table(found: LayerEffects, change: Change) -> Table:
    scores = found.originals[change]
    rows = [["original", *(cell for score in scores for cell in (_cell(score), ""))]]
    marked = found.deciding(change) or []
    kinds: tuple[Vector, Vector] = ("direction", "random")
    for layer in found.layers:
        cells = [f"{'*' if layer in marked else ''}{layer}"]
        for score in scores:
            cells += [_cell(named(found.of(change, kind)[layer], score.name)) for kind in kinds]
        rows.append(cells)
    table = _table(_HEADINGS[change].format(found.prompts[change]))
    headings = [name for score in scores for name in (title(score.name), "random vector")]
    for place, heading in enumerate(["layer", *headings]):
        word = longest_word(heading)
        widest = max(word, *(len(row[place]) for row in rows))  # the heading is wrapped for it
        side: Literal["left", "right"] = "left" if place else "right"
        table.add_column(
            Text(heading), justify=side, overflow="fold", min_width=word, max_width=widest
        )
    for row in rows:
        table.add_row(*text_cells(*row))
    return table


def _cell(score: Any) -> str:
    """A count with its interval; of other scores the figure alone, to save width."""
    text = str(score.short)
    if score.interval is None or not score.is_count:
        return text
    low, high = score.interval
    return f"{text} [{low:.2f}, {high:.2f}]"


def _style(share: float) -> Style:
    """White on a colour: the more, the farther toward the behaviour (red) or away (blue)."""
    amount = min(1.0, abs(share))
    if amount < 0.12:
        return Style()
    end = _TOWARD if share > 0 else _AWAY
    mixed = [round(80 + (channel - 80) * amount) for channel in end]
    return Style(color="white", bgcolor=f"rgb({mixed[0]},{mixed[1]},{mixed[2]})")
