"""A page of texts whose tokens are coloured: one file without a script or a request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from heretic import __version__
from heretic.report.page.html import POLICY, harmless, resource, source_of
from heretic.report.tokens import LEVELS, ColouredText
from heretic.system.display import visible

_Colour = tuple[int, int, int]
_Sides = dict[str, tuple[_Colour, _Colour]]

_LIGHT: _Sides = {"p": ((255, 255, 255), (242, 142, 95)), "n": ((255, 255, 255), (106, 165, 224))}
_DARK: _Sides = {"p": ((22, 25, 30), (168, 62, 20)), "n": ((22, 25, 30), (26, 93, 160))}
"""From no colour to full colour, toward the behaviour (p) and away from it (n)."""


def tokens_page(texts: Sequence[ColouredText], model: str) -> str:
    """The page of some texts, light and dark.

    Args:
        model: Its name, for the title.
    """
    from jinja2 import Environment, StrictUndefined

    style = resource("tokens.css") + _colours(_LIGHT)
    style += f"@media screen and (prefers-color-scheme: dark) {{\n{_colours(_DARK)}}}\n"
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=harmless
    )
    layers = sorted({text.layer for text in texts})
    where = f"layer {layers[0]}" if len(layers) == 1 else "their layers"
    return environment.from_string(resource("tokens.html.jinja")).render(
        title=f"Heretic: tokens along a direction of {model}",
        lead=f"How far the residual of each token lies along the direction of {where}. "
        "A token's title, and the table below, give its figure.",
        texts=[_shown(text) for text in texts],
        steps=LEVELS,
        style=style,
        policy=POLICY.format(scripts="'none'", styles=source_of(style)),
        footer=f"Made by Heretic {__version__}. docs/interpretability.md says what the figures "
        "measure.",
    )


def _shown(text: ColouredText) -> dict[str, Any]:
    begin = len(text.tokens) - text.replied
    rows = zip(text.tokens, text.values, text.levels, strict=True)
    return {
        "scale": text.told_scale(),
        "replied": text.replied,
        "tokens": [
            {
                "text": visible(token),
                "value": f"{value:+.3g}" if math.isfinite(value) else "-",
                "kind": f"{'p' if level > 0 else 'n'}{abs(level)}" if level else "",
                "breaks": "\n" in token,
                "begins": bool(text.replied) and place == begin,
            }
            for place, (token, value, level) in enumerate(rows)
        ],
    }


def _colours(sides: _Sides) -> str:
    """A class for each step of colour: no inline style, which the policy would refuse."""
    lines = []
    for side, (low, high) in sides.items():
        for level in range(1, LEVELS + 1):
            share = level / LEVELS
            mixed = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
            lines.append(f".{side}{level} {{ background: rgb({', '.join(map(str, mixed))}); }}\n")
    return "".join(lines)
