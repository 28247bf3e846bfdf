"""Data and figures of directions, and the page of coloured texts, on which nothing can act."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tests.support.page_case import ESCAPE, HOSTILE

from heretic.errors import HereticError
from heretic.records import Score
from heretic.records.effects import Effect, LayerEffects
from heretic.report.directions import cosine_map, layer_words
from heretic.report.page import directions as figures
from heretic.report.page.pictures import write_pictures
from heretic.report.page.tokens import tokens_page
from heretic.report.tokens import LEVELS, ColouredText, layer_told_apart
from heretic.system.display import visible


def test_cosines_of_all_pairs():
    first = np.array([[2.0, 0.0], [0.0, 0.0], [-1.0, 0.0]], np.float32)
    found = cosine_map(first, np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert found.dtype == np.float64
    assert found[0] == pytest.approx([1.0, 0.5**0.5])
    assert found[2] == pytest.approx([-1.0, -(0.5**0.5)])
    assert np.isnan(found[1]).all()
    rows = figures.cosine_rows(found)
    assert [(row["layer"], row["other"]) for row in rows] == [(0, 0), (0, 1), (2, 0), (2, 1)]


def test_widths_that_differ_are_refused():
    with pytest.raises(HereticError, match="width 2 and of width 3 cannot be compared"):
        cosine_map(np.ones((4, 2)), np.ones((4, 3)))


def test_tokens_are_ranked_from_both_ends():
    logits = np.array([[0.0, 3.0, -2.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 5.0, 0.0]])
    found = layer_words(logits, [4, 5, 6], lambda ids: [f"t{number}" for number in ids], 2)
    assert [one.layer for one in found] == [4, 6]  # layer 5 has no direction
    assert [token.text for token in found[0].promoted] == ["t1", "t3"]
    assert [token.text for token in found[0].suppressed] == ["t2", "t0"]
    assert found[0].promoted[0].logit == 3.0
    assert found[0].promoted[0].deviations == pytest.approx(2.5 / np.std(logits[0]))
    assert found[0].suppressed[0].deviations < 0
    few = layer_words(logits[:1], [4], lambda ids: [""] * len(ids), 10)
    assert len(few[0].promoted) == len(few[0].suppressed) == 2  # no token is in both


def test_what_is_not_seen_is_shown():
    assert visible(" a\n\tb\u00a0\u202e\x1b[2J") == "·a\\n\\tb\\u00a0\\u202e\\u001b[2J"


def text(*values: float, length: float | None = None, replied: int = 0) -> ColouredText:
    names = tuple(f"token{place}" for place in range(len(values)))
    return ColouredText(3, names, values, length, replied)


def test_full_colour_is_the_length_or_the_largest_value_after_the_first():
    assert text(900.0, 5.0, -10.0, length=20.0).levels == (LEVELS, 2, -4)
    assert text(900.0, 5.0, -10.0).levels == (LEVELS, 4, -LEVELS)
    assert text(7.0).levels == (LEVELS,)
    assert text(0.0, 0.0).levels == (0, 0)


def test_what_is_not_finite_has_no_colour_and_no_part_in_the_scale():
    nan, inf = float("nan"), float("inf")
    found = text(900.0, nan, 5.0, -10.0, inf)
    assert found.scale == 10.0
    assert found.levels == (LEVELS, 0, 4, -LEVELS, 0)
    assert found.shares == (90.0, None, 0.5, -1.0, None)
    assert text(1.0, 5.0, length=nan).scale == 5.0
    page = tokens_page([found], "m")
    assert "nan" not in page
    assert page.count("<td>-</td>") == 2
    mapped = figures.within_layer(np.array([[9.0, nan, 1.0, 3.0], [nan, nan, nan, nan]]))
    assert mapped[0, [0, 2, 3]].tolist() == [3.0, -1.0, 0.0]
    assert np.isnan([*mapped[1], mapped[0, 1]]).all()


def test_the_layer_that_is_shown_is_the_first_one_that_tells_prompts_apart():
    probes = [0.6, 0.97, 0.975, 0.98, None]
    geometry = [{"layer": layer, "probe": probe} for layer, probe in enumerate(probes)]
    assert layer_told_apart(geometry, 5)[0] == 1
    assert layer_told_apart([], 30)[0] == 19
    assert layer_told_apart([{"layer": 70, "probe": 1.0}], 4)[0] == 2  # of another model


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.policy = ""
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if dict(attrs).get("http-equiv"):
            self.policy = str(dict(attrs)["content"])

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_tokens_do_nothing_on_the_page():
    hostile = ColouredText(3, (HOSTILE, ESCAPE, "plain"), (1.0, -1.0, 0.1), 1.0, 1)
    page = tokens_page([hostile], f"model {HOSTILE}")
    reader = Reader()
    reader.feed(page)
    assert {"script", "img", "link", "iframe"}.isdisjoint(reader.tags)
    assert {"onerror", "src", "href", "style"}.isdisjoint(reader.attributes)
    assert "default-src 'none'" in reader.policy
    assert "script-src 'none'" in reader.policy
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "<script>alert(1)</script>" in reader.text  # as text
    assert f'class="p{LEVELS}"' in page
    assert f'class="n{LEVELS}"' in page
    assert page.index('<span class="reply">') < page.index(">plain<")


def test_every_colour_has_its_class_in_both_themes():
    page = tokens_page([text(1.0, length=1.0)], "m")
    for side in "pn":
        for level in range(1, LEVELS + 1):
            assert len(re.findall(rf"\.{side}{level} {{", page)) == 2


def effects() -> LayerEffects:
    def scores(value: float) -> tuple[Score, ...]:
        return (
            Score("refusals", value, "minimize", f"{value:.0%}", interval=(0.0, 1.0)),
            Score("kl_divergence", value / 10, "minimize", "0.1"),
        )

    rows = [
        Effect(layer, "removed", vector, scores(0.1 * layer))
        for layer in (0, 2)
        for vector in ("direction", "random")
    ]
    return LayerEffects({"removed": scores(0.9)}, tuple(rows), {"removed": 16})


def test_figures_show_their_data(tmp_path: Path):
    found = effects()
    drawn = figures.effect_figures(found)
    assert [one.name for one in drawn] == [
        "layers-removed-refusals",
        "layers-removed-kl_divergence",
    ]
    rows = figures.effect_rows(found, "removed", "refusals")
    assert {row["vector"] for row in rows} == {"direction", "random vector"}
    assert [row["layer"] for row in rows] == [0, 2, 0, 2]
    words = layer_words(
        np.array([[0.0, 3.0, -2.0, 1.0]]), [4], lambda ids: [f"{HOSTILE}{n}" for n in ids], 2
    )
    values = np.array([[9.0, 1.0, -2.0], [4.0, 2.0, 0.0]])
    coloured = ColouredText(0, (HOSTILE, "\n", " b"), (9.0, 1.0, -2.0), None)
    more = [
        *figures.word_figures(words),
        figures.cosine_figure(np.eye(2), "one", "two"),
        figures.token_map(coloured, values),
    ]
    (words_rows,) = (one.spec for one in more if one.name == "words-promoted")
    assert visible(f"{HOSTILE}1") in [
        row["token"] for rows in words_rows["datasets"].values() for row in rows
    ]
    written = write_pictures([*drawn, *more], tmp_path / "pictures")
    assert len(written) == 12
    for path in written:
        assert path.stat().st_size > 500
        assert "<script" not in path.read_text(errors="replace")


def test_names_of_figures_stay_within_the_folder(tmp_path: Path):
    drawn = replace(figures.cosine_figure(np.eye(2), "one"), name="layers-../../a b")
    written = write_pictures([drawn], tmp_path / "pictures")
    assert [path.name for path in written] == ["layers-.._.._a_b.svg", "layers-.._.._a_b.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_a_long_text_shows_its_end():
    rows = figures.token_rows([str(n) for n in range(100)], np.ones((2, 100)))
    assert {row["place"] for row in rows} == set(range(40, 100))


def test_each_layer_of_a_text_is_scaled_by_itself():
    found = figures.within_layer(np.array([[900.0, 1.0, 3.0, 5.0], [0.0, 0.0, 0.0, 0.0]]))
    assert found[0].tolist() == [896.0 / 3, -1.0, -1 / 3, 1 / 3]
    assert found[1].tolist() == [0.0] * 4
    assert figures.within_layer(np.array([[7.0]])).tolist() == [[0.0]]
