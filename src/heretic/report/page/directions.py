"""Figures of directions, drawn with Altair (extra `report`): cosines, tokens, effects of layers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from heretic.records.effects import CHANGES, Change, LayerEffects, Vector, named
from heretic.records.trial import Score, words_of
from heretic.report.directions import Floats, LayerWords
from heretic.report.page.charts import GREEN, GREY, RED, Figure, Row, data_of, spec_of
from heretic.report.tokens import ColouredText
from heretic.system.display import visible

VECTORS = {"direction": RED, "random vector": GREY, "original": GREEN}
SHOWN_TOKENS = 60
"""Tokens of a text in the map of layers: its last ones."""

_PALES = {
    "promoted": alt.Scale(scheme="oranges", domain=[2, 12]),
    "suppressed": alt.Scale(scheme="blues", domain=[2, 12]),
}
"""Of standard deviations: pale, so that text can be read on them."""

_LIKELY = {"promoted": "likely", "suppressed": "unlikely"}


# --- data ----------------------------------------------------------------------------------


def cosine_rows(found: Floats) -> list[Row]:
    """A row for each pair of layers that both have a direction."""
    return [
        {"layer": layer, "other": other, "cosine": round(float(value), 4)}
        for layer, values in enumerate(found)
        for other, value in enumerate(values)
        if math.isfinite(value)
    ]


def word_rows(words: Sequence[LayerWords], *, promoted: bool) -> list[Row]:
    """A row for each token, by layer and rank."""
    return [
        {
            "layer": found.layer,
            "rank": rank,
            "token": visible(token.text),
            "deviations": round(abs(token.deviations), 3),
        }
        for found in words
        for rank, token in enumerate(found.promoted if promoted else found.suppressed, 1)
    ]


def within_layer(values: Floats) -> Floats:
    """Values less their layer's median, over the largest that is left after the first token.

    Args:
        values: [layers, tokens]. Those that are not finite come out as NaN, and count for nothing.
    """
    known = [row[np.isfinite(row)] for row in values]
    medians = np.array([np.median(row) if row.size else 0.0 for row in known])
    centred = np.where(np.isfinite(values), values, np.nan) - medians[:, np.newaxis]
    rest = centred[:, 1:] if values.shape[1] > 1 else centred
    largest = np.nan_to_num(np.abs(rest)).max(axis=1, keepdims=True)
    found: Floats = centred / np.where(largest > 0, largest, 1.0)
    return found


def token_rows(texts: Sequence[str], values: Floats) -> list[Row]:
    """A row for each token and layer, of the last tokens.

    Args:
        values: [layers, tokens].
    """
    first = max(0, len(texts) - SHOWN_TOKENS)
    return [
        {"layer": layer, "place": place, "token": visible(texts[place]), "value": round(value, 4)}
        for layer, row in enumerate(values.tolist())
        for place, value in enumerate(row)
        if place >= first and math.isfinite(value)
    ]


def effect_rows(found: LayerEffects, change: Change, name: str) -> list[Row]:
    """A row for each layer and vector, with the interval of its score where there is one."""
    vectors: dict[Vector, str] = {"direction": "direction", "random": "random vector"}
    return [
        {"layer": layer, "vector": title, **_figures(named(scores, name))}
        for vector, title in vectors.items()
        for layer, scores in found.of(change, vector).items()
    ]


def _figures(score: Score) -> dict[str, Any]:
    low, high = score.interval or (None, None)
    return {"value": score.figure, "low": low, "high": high, "shown": score.display}


# --- figures -------------------------------------------------------------------------------


def cosine_figure(found: Floats, first: str, second: str = "") -> Figure:
    """A map of cosines: rows are layers of the first run, columns those of the second."""
    down = f"layer of {first}" if second else "layer"
    across = f"layer of {second}" if second else "layer"
    chart = (
        alt.Chart(data_of(cosine_rows(found)))
        .mark_rect()
        .encode(
            x=alt.X("other:O", title=across, axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("layer:O", title=down, axis=alt.Axis(labelOverlap=True)),
            color=alt.Color(
                "cosine:Q", scale=alt.Scale(scheme="blueorange", domain=[-1, 1]), title="cosine"
            ),
            tooltip=[alt.Tooltip("layer:O"), alt.Tooltip("other:O"), alt.Tooltip("cosine:Q")],
        )
    )
    told = f"Cosines of the directions of {first}" + (
        f" with those of {second}." if second else " with each other."
    )
    return Figure("cosines", "Cosines of directions", told, spec_of(chart, 440))


def word_figures(words: Sequence[LayerWords]) -> list[Figure]:
    """Two tables of tokens by layer, coloured by how far each stands out."""
    return [
        _word_figure(word_rows(words, promoted=True), "promoted"),
        _word_figure(word_rows(words, promoted=False), "suppressed"),
    ]


def _word_figure(rows: Sequence[Row], kind: str) -> Figure:
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X("rank:O", title="rank", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", title="layer", sort="descending"),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "deviations:Q",
            title="standard deviations",
            scale=_PALES[kind],
        ),
        tooltip=[alt.Tooltip("layer:O"), alt.Tooltip("token:N"), alt.Tooltip("deviations:Q")],
    )
    texts = base.mark_text(fontSize=10, color="#16191e", limit=95).encode(text="token:N")
    layers = len({row["layer"] for row in rows})
    told = (
        f"Tokens that each layer's direction makes most {_LIKELY[kind]}, by the output head alone; "
        "colour is the distance from the mean of all tokens, in standard deviations."
    )
    chart = alt.layer(cells, texts)
    return Figure(f"words-{kind}", f"Tokens {kind}", told, spec_of(chart, max(80, 17 * layers)))


def token_map(text: ColouredText, values: Floats, number: int = 1) -> Figure:
    """A map of a text: rows are layers, columns its last tokens.

    Each layer is scaled by itself, since lengths grow over the layers, and many directions have an
    offset that all tokens share.

    Args:
        values: [layers, tokens], in the units of the residual stream.
        number: Of the text, for the figure's name.
    """
    rows = token_rows(text.tokens, within_layer(values))
    places = sorted({row["place"] for row in rows})
    labels = {str(place): visible(text.tokens[place]) for place in places}
    names = f"({json.dumps(labels)})[datum.value]"  # an expression of Vega
    chart = (
        alt.Chart(data_of(rows))
        .mark_rect()
        .encode(
            x=alt.X(
                "place:O",
                title=None,
                axis=alt.Axis(labelExpr=names, labelAngle=-60, labelLimit=90, labelOverlap=False),
            ),
            y=alt.Y("layer:O", title="layer", sort="descending"),
            color=alt.Color(
                "value:Q",
                title=None,
                scale=alt.Scale(scheme="blueorange", domain=[-1, 1], clamp=True),
            ),
            tooltip=[alt.Tooltip("token:N"), alt.Tooltip("layer:O"), alt.Tooltip("value:Q")],
        )
    )
    cut = f" Its last {len(places)} tokens." if len(places) < len(text.tokens) else ""
    told = (
        "How far each token lies along each layer's direction. 0 is the layer's median token, 1 "
        f"its largest distance from it after the first token.{cut}"
    )
    spec = spec_of(chart, max(120, 13 * len(values)))
    return Figure(f"tokens-{number}", "Tokens along the directions", told, spec)


def effect_figures(found: LayerEffects) -> list[Figure]:
    """For each change and score, the score over layers: direction, random vector, original."""
    return [
        _effect_figure(found, change, score)
        for change in CHANGES
        if change in found.originals
        for score in found.originals[change]
    ]


_TOLD = {
    "removed": "The layer's direction, or a random one, is taken out of its output; bad prompts.",
    "added": "The direction at its length, or a random vector, is added to the layer's output; "
    "good prompts.",
}


def _effect_figure(found: LayerEffects, change: Change, original: Score) -> Figure:
    rows, name = effect_rows(found, change, original.name), words_of(original.name)
    scale = alt.Scale(domain=list(VECTORS), range=list(VECTORS.values()))
    colour = alt.Color("vector:N", title=None, scale=scale, legend=alt.Legend(orient="top"))
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1)), color=colour
    )
    y = alt.Y("value:Q", title=name)
    layers = [
        alt.Chart(data_of([{"vector": "original", **_figures(original)}]))
        .mark_rule(strokeDash=[4, 3], strokeWidth=1.5)
        .encode(y=y, color=colour),
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2, opacity=0.6)
        .encode(y="low:Q", y2="high:Q"),
        base.mark_line(opacity=0.6).encode(y=y),
        base.mark_point(filled=True, size=60).encode(
            y=y,
            tooltip=[alt.Tooltip("layer:Q"), alt.Tooltip("vector:N"), alt.Tooltip("shown:N")],
        ),
    ]
    return Figure(
        f"layers-{change}-{original.name}",
        f"{name}, {change} after one layer",
        f"{_TOLD[change]} Bars are 95% intervals, with the prompts as a random sample.",
        spec_of(alt.layer(*layers)),
    )
