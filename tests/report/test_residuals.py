"""Residual geometry and projections, as data, as a table, and as pictures that open."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from heretic.cli.display.geometry import geometry_tables
from heretic.errors import HereticError
from heretic.method import directions
from heretic.method.median import weiszfeld
from heretic.report import projection
from heretic.report.geometry import residual_geometry, silhouette
from heretic.system.optional import require


def residuals(count: int, *, shift: float, layers: int = 3, hidden: int = 16, seed: int = 0):
    """[count, layers + 1, hidden]; the shift grows with the layer, the embeddings are constant."""
    random = np.random.default_rng(seed)
    points = random.normal(size=(count, layers + 1, hidden)) + 2.0
    points[:, :, 0] += shift * np.arange(layers + 1)
    points[:, 0] = 1.0
    return points.astype(np.float32)


GOOD = residuals(30, shift=0.0)
BAD = residuals(20, shift=4.0, seed=1)


def test_one_row_per_layer_without_the_embeddings():
    assert [row.layer for row in residual_geometry(GOOD, BAD)] == [0, 1, 2]


def test_figures_are_the_definitions():
    row = residual_geometry(GOOD, BAD)[1]
    g = GOOD[:, 2].astype(np.float64).mean(axis=0)
    b = BAD[:, 2].astype(np.float64).mean(axis=0)
    r = b - g
    assert row.norm_direction == pytest.approx(np.linalg.norm(r))
    assert row.cos_means == pytest.approx(g @ b / np.linalg.norm(g) / np.linalg.norm(b))
    assert row.cos_bad_direction == pytest.approx(b @ r / np.linalg.norm(b) / np.linalg.norm(r))


def test_first_layer_has_no_layer_before():
    rows = residual_geometry(GOOD, BAD)
    assert math.isnan(rows[0].cos_previous)
    assert rows[2].cos_previous > 0.8


def test_sets_further_apart_have_a_larger_silhouette():
    rows = residual_geometry(GOOD, BAD)
    assert rows[0].silhouette < rows[1].silhouette < rows[2].silhouette


def test_equal_sets_have_no_direction():
    row = residual_geometry(GOOD, GOOD)[0]
    assert row.norm_direction == 0.0
    assert math.isnan(row.cos_good_direction)
    assert row.cos_means == pytest.approx(1.0)


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 5))
def test_median_is_that_of_the_directions(count: int, hidden: int, seed: int):
    points = np.random.default_rng(seed).normal(size=(count, hidden))
    expected = directions.geometric_median(torch.from_numpy(points)[:, None, :])[0].numpy()
    assert weiszfeld(points) == pytest.approx(expected, abs=1e-5)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 5), st.integers(0, 5))
def test_silhouette_is_scikit_learns(first: int, second: int, shift: float, seed: int):
    metrics = pytest.importorskip("sklearn.metrics")
    if first + second < 3:
        return
    random = np.random.default_rng(seed)
    left, right = random.normal(size=(first, 4)), random.normal(size=(second, 4)) + shift
    labels = [0] * first + [1] * second
    expected = metrics.silhouette_score(np.concatenate([left, right]), labels)
    assert silhouette(left, right) == pytest.approx(expected, abs=1e-6)


def test_silhouette_of_one_single_point_in_two_places_is_defined():
    assert silhouette(np.ones((3, 2)), np.ones((2, 2))) == 0.0


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (GOOD, BAD[:, :2]),
        (GOOD[:0], BAD),
        (GOOD[:, 0], BAD[:, 0]),
        (GOOD[:, :1], BAD[:, :1]),
    ],
)
def test_residuals_that_do_not_fit_are_refused(good, bad):
    with pytest.raises(HereticError):
        residual_geometry(good, bad)


@pytest.mark.parametrize(("width", "tables"), [(60, 4), (80, 2), (120, 2), (200, 2)])
def test_tables_fit_a_terminal_and_have_every_layer_and_no_nan(width: int, tables: int):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(geometry_tables(residual_geometry(GOOD, 5000 * BAD)))  # norms have many digits
    text = console.export_text()
    assert "silhouette" in text
    assert "nan" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for name in ("g,b", "G,B", "g,r", "G,R", "b,r", "B,R", "r,R", "r,r'", "|g|", "|R|", "probe"):
        assert f" {name} " in text
    rows = [line.split()[0] for line in text.splitlines() if line[:8].strip().isdigit()]
    assert rows == ["0", "1", "2"] * tables


def layer(number: int, seed: int) -> projection.Projection:
    random = np.random.default_rng(seed)
    return projection.Projection(
        number, random.normal(size=(25, 2)) - 0.5, random.normal(size=(25, 2)) + 0.5
    )


def test_alignment_undoes_a_turn_and_a_mirror():
    points = layer(0, 0).good
    angle = 1.1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert projection.align(points @ turn, points) == pytest.approx(points)
    assert projection.align(points * [1, -1], points) == pytest.approx(points)


def test_between_starts_and_ends_at_the_layers():
    first, second = layer(0, 0), layer(1, 1)
    assert projection.between(first, second, 0.0).good == pytest.approx(first.good)
    assert projection.between(first, second, 1.0).bad == pytest.approx(second.bad)
    assert projection.between(first, second, 0.4).layer == 0
    assert projection.between(first, second, 0.6).layer == 1


def test_pictures_open_and_there_is_one_per_layer(tmp_path: Path):
    paths = projection.draw_projections([layer(0, 0), layer(1, 1)], tmp_path / "plots")
    assert [path.name for path in paths] == ["layer_000.png", "layer_001.png"]
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width == image.height


def test_animation_rests_at_every_layer(tmp_path: Path):
    path = projection.draw_animation([layer(0, 0), layer(1, 1)], tmp_path / "layers.gif")
    with Image.open(path) as image:
        assert image.format == "GIF"
        assert getattr(image, "n_frames", 1) == projection.FRAMES_PER_LAYER + 1
        assert image.info["duration"] == projection.MILLISECONDS_AT_REST


def test_unknown_style_names_those_there_are(tmp_path: Path):
    look = projection.Appearance(style="no-such-style")
    with pytest.raises(HereticError, match="dark_background"):
        projection.draw_projections([layer(0, 0)], tmp_path, look)


def test_missing_package_says_what_to_install():
    with pytest.raises(HereticError, match=r"pip install '\.\[research\]'"):
        require("no_such_package_here", extra="research", purpose="Plotting residuals")


def test_too_few_residuals_for_a_projection():
    with pytest.raises(HereticError, match="ten"):
        projection.project(GOOD[:4], BAD[:4])


@pytest.mark.slow
def test_projection_keeps_separate_sets_apart():
    pytest.importorskip("pacmap")
    calls: list[tuple[int, int]] = []
    far = residuals(10, shift=30.0, seed=2, layers=2)
    near = residuals(10, shift=0.0, layers=2)
    result = projection.project(near, far, progress=lambda done, total: calls.append((done, total)))
    assert [item.layer for item in result] == [0, 1]
    assert calls == [(1, 2), (2, 2)]
    for item in result:
        assert silhouette(item.good, item.bad) > 0.5
        both = np.concatenate([item.good, item.bad])
        assert np.sqrt((both**2).sum(axis=1).mean()) == pytest.approx(1.0)
    again = projection.project(near, far)
    assert again[1].good == pytest.approx(result[1].good, abs=1e-3)
