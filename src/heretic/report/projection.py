"""Residuals projected to the plane, one map per layer, by PaCMAP (Wang et al. 2021).

Needs the optional package pacmap (extra `research`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heretic.errors import HereticError
from heretic.report.drawing import new_figure, save_figure, style
from heretic.report.geometry import Residuals, check_residuals
from heretic.system.optional import require

if TYPE_CHECKING:
    from PIL.Image import Image

Points = NDArray[np.float64]
Progress = Callable[[int, int], None]

MOST_COMPONENTS = 100
"""Of residuals that PaCMAP sees: its own bound."""

ITERATIONS = (100, 100, 250)
"""Of PaCMAP's three phases (its own default)."""

ITERATIONS_FROM_MAP = (50, 50, 150)
"""Where the map of the layer before is the start: more find no better neighbours (lab notes)."""

FRAMES_PER_LAYER = 6
MILLISECONDS_PER_FRAME = 70
MILLISECONDS_AT_REST = 500


@dataclass(frozen=True, slots=True)
class Projection:
    """One layer's residuals in the plane, centred, with a root mean square radius of 1.

    Attributes:
        layer: 0-based.
        good: Points of the good prompts, float64 [prompts, 2].
        bad: Points of the bad prompts, float64 [prompts, 2].
    """

    layer: int
    good: Points
    bad: Points


@dataclass(frozen=True, slots=True)
class Appearance:
    """How projections are drawn; colours and style are names that matplotlib knows."""

    title: str = "PaCMAP projection of residuals"
    good_label: str = "good prompts"
    bad_label: str = "bad prompts"
    good_color: str = "royalblue"
    bad_color: str = "darkorange"
    style: str = "dark_background"


@dataclass(frozen=True, slots=True)
class _Frame:
    """What all pictures of a run share, so that they can be compared and animated.

    Attributes:
        reach: Half the width of the square that is shown.
        last_layer: 0-based index of the last layer.
    """

    reach: float
    last_layer: int

    @classmethod
    def around(cls, projections: Sequence[Projection]) -> _Frame:
        """A square that contains all points of all layers, with a margin."""
        reach = max(
            (float(np.abs(p).max()) for item in projections for p in (item.good, item.bad)),
            default=1.0,
        )
        return cls(1.06 * reach, max((item.layer for item in projections), default=0))


def project(
    good: Residuals,
    bad: Residuals,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Projection]:
    """Project the residuals of every layer, good and bad together.

    Each layer's map is initialised with the map of the layer before and rotated to match it, so
    that an animation shows changes and not arbitrary rotations.

    Args:
        good: Residuals of the good prompts, [prompts, layers + 1, hidden]; the embeddings (row 0
            of the second axis) are left out.
        bad: Residuals of the bad prompts, with the same layers and width.
        seed: Seed of PaCMAP's random choices.
        progress: Called with (layers done, number of layers).

    Raises:
        HereticError: pacmap is not installed, or there are fewer than ten prompts in all.
    """
    check_residuals(good, bad)
    count = len(good) + len(bad)
    if count < 10:
        raise HereticError(
            f"A projection needs at least ten residuals; there are {count}.",
            remedy="Give more prompts.",
        )
    pacmap = require("pacmap", extra="research", purpose="Plotting residuals")
    result: list[Projection] = []
    previous: Points | None = None
    layers = good.shape[1] - 1
    for layer in range(layers):
        both = np.concatenate([good[:, layer + 1], bad[:, layer + 1]]).astype(np.float32)
        points = _embed(pacmap, both, previous, seed)
        points = _normalise(points) if previous is None else align(_normalise(points), previous)
        result.append(Projection(layer, points[: len(good)], points[len(good) :]))
        previous = points
        if progress is not None:
            progress(layer + 1, layers)
    return result


def align(points: Points, reference: Points) -> Points:
    """Rotate, or reflect, points [n, 2] to match a reference [n, 2] as closely as possible.

    Solves the orthogonal Procrustes problem (Schönemann 1966).
    """
    left, _, right = np.linalg.svd(points.T @ reference)
    turned: Points = points @ (left @ right)
    return turned


def between(first: Projection, second: Projection, fraction: float) -> Projection:
    """Interpolate between two projections; `fraction` in [0, 1] is eased in and out."""
    eased = fraction * fraction * (3 - 2 * fraction)
    return Projection(
        layer=first.layer if fraction < 0.5 else second.layer,
        good=first.good + eased * (second.good - first.good),
        bad=first.bad + eased * (second.bad - first.bad),
    )


def draw_projections(
    projections: Sequence[Projection],
    folder: Path,
    appearance: Appearance | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write one PNG per layer, `layer_000.png` and so on, and return their paths.

    Args:
        progress: Called with (pictures done, number of pictures).
    """
    paths: list[Path] = []
    with _drawn(projections, appearance or Appearance()) as canvas:
        for done, projection in enumerate(projections, start=1):
            canvas.show(projection)
            path = folder / f"layer_{projection.layer:03d}.png"
            paths.append(save_figure(canvas.figure, path))
            if progress is not None:
                progress(done, len(projections))
    return paths


def draw_animation(
    projections: Sequence[Projection],
    path: Path,
    appearance: Appearance | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a GIF that shows the layers in order, pausing at each, and return its path.

    Args:
        progress: Called with (pictures done, number of pictures).

    Raises:
        HereticError: There are no projections.
    """
    if not projections:
        raise HereticError("There are no projections to animate.")
    shown = list(_frames(projections))
    images: list[Image] = []
    with _drawn(projections, appearance or Appearance(), dots_per_inch=80) as canvas:
        for done, (projection, _) in enumerate(shown, start=1):
            canvas.show(projection)
            images.append(canvas.image())
            if progress is not None:
                progress(done, len(shown))
    durations = [milliseconds for _, milliseconds in shown]
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)
    return path


def _frames(projections: Sequence[Projection]) -> Iterator[tuple[Projection, int]]:
    """What the animation shows one after the other, and for how many milliseconds."""
    for first, second in pairwise(projections):
        yield first, MILLISECONDS_AT_REST
        for step in range(1, FRAMES_PER_LAYER):
            yield between(first, second, step / FRAMES_PER_LAYER), MILLISECONDS_PER_FRAME
    yield projections[-1], MILLISECONDS_AT_REST


def _embed(pacmap: Any, points: NDArray[np.float32], start: Points | None, seed: int) -> Points:
    points = _reduced(points)
    if not points.any():  # all the same, which PaCMAP would divide by
        return np.zeros((len(points), 2))
    # It warns for each layer that a seed was set, which is intended here.
    logging.getLogger("pacmap").setLevel(logging.ERROR)
    reducer = pacmap.PaCMAP(
        n_components=2,
        n_neighbors=min(10, len(points) // 4),
        num_iters=ITERATIONS if start is None else ITERATIONS_FROM_MAP,
        random_state=seed,
        verbose=False,
    )
    embedded = reducer.fit_transform(
        points, init="pca" if start is None else start.astype(np.float32)
    )
    return np.asarray(embedded, dtype=np.float64)


def _reduced(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points [n, width] by their principal components, float32 [n, min(n, width, 100)].

    PaCMAP does the same by a randomised decomposition, which costs it a third of its time: points
    are few here, and the matrix of their inner products is small.
    """
    centred = (points - points.mean(axis=0)).astype(np.float64)
    values, vectors = np.linalg.eigh(centred @ centred.T)  # ascending
    largest = slice(None, -1 - min(MOST_COMPONENTS, points.shape[1]), -1)
    lengths = np.sqrt(values[largest].clip(0.0))
    reduced: NDArray[np.float32] = (vectors[:, largest] * lengths).astype(np.float32)
    return reduced


def _normalise(points: Points) -> Points:
    centred = points - points.mean(axis=0)
    radius = float(np.sqrt((centred**2).sum(axis=1).mean()))
    result: Points = centred / radius if radius > 0 else centred
    return result


class _Canvas:
    """A figure that shows one projection after the other.

    It is laid out once: most of the time to draw a figure anew is its layout.
    """

    def __init__(self, frame: _Frame, look: Appearance, size: tuple[int, int]) -> None:
        self._look, self._last_layer = look, frame.last_layer
        self.figure = new_figure(6.0, 6.0)
        self._axes = axes = self.figure.add_subplot()
        good, bad = (np.zeros((count, 2)) for count in size)
        sets = ((good, look.good_color, look.good_label), (bad, look.bad_color, look.bad_label))
        self._points = [
            axes.scatter(
                points[:, 0], points[:, 1], s=16, color=color, alpha=0.75, linewidths=0, label=label
            )
            for points, color, label in sets
        ]
        axes.set_xlim(-frame.reach, frame.reach)
        # Leave room below the points for the legend.
        axes.set_ylim(-1.12 * frame.reach, frame.reach)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(loc="lower right", frameon=False, fontsize=10, ncols=2)
        self._name(frame.last_layer)
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    def show(self, projection: Projection) -> None:
        """Move the points, and name their layer."""
        for drawn, points in zip(self._points, (projection.good, projection.bad), strict=True):
            drawn.set_offsets(points)
        self._name(projection.layer)

    def image(self) -> Image:
        """What is shown, reduced to 96 colours to keep a file of many small."""
        from PIL import Image

        self.figure.canvas.draw()
        pixels = np.asarray(self.figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
        return Image.fromarray(pixels[..., :3].copy()).quantize(96)

    def _name(self, layer: int) -> None:
        self._axes.set_title(f"{self._look.title}\nlayer {layer} / {self._last_layer}", fontsize=12)


@contextmanager
def _drawn(
    projections: Sequence[Projection], look: Appearance, dots_per_inch: int | None = None
) -> Iterator[_Canvas]:
    """A canvas for them, in the style that is asked for."""
    with style(look.style):
        sizes = [(len(item.good), len(item.bad)) for item in projections[:1]]
        canvas = _Canvas(_Frame.around(projections), look, sizes[0] if sizes else (0, 0))
        if dots_per_inch is not None:
            canvas.figure.set_dpi(dots_per_inch)
        yield canvas
