"""Residuals projected to the plane, one map per layer, by PaCMAP (Wang et al. 2021).

Needs the optional package pacmap (extra `research`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heretic.errors import HereticError
from heretic.report.drawing import new_figure, save_figure, style
from heretic.report.geometry import Residuals, check_residuals
from heretic.system.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

Points = NDArray[np.float64]

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
    progress: Callable[[int, int], None] | None = None,
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
    projections: Sequence[Projection], folder: Path, appearance: Appearance | None = None
) -> list[Path]:
    """Write one PNG per layer, `layer_000.png` and so on, and return their paths."""
    look = appearance or Appearance()
    frame = _Frame.around(projections)
    with style(look.style):
        return [
            save_figure(
                _figure(projection, frame, look),
                folder / f"layer_{projection.layer:03d}.png",
            )
            for projection in projections
        ]


def draw_animation(
    projections: Sequence[Projection], path: Path, appearance: Appearance | None = None
) -> Path:
    """Write a GIF that shows the layers in order, pausing at each, and return its path.

    Raises:
        HereticError: There are no projections.
    """
    look = appearance or Appearance()
    if not projections:
        raise HereticError("There are no projections to animate.")
    frame = _Frame.around(projections)
    frames: list[Image] = []
    durations: list[int] = []
    with style(look.style):
        for index, projection in enumerate(projections):
            frames.append(_image(projection, frame, look))
            durations.append(MILLISECONDS_AT_REST)
            if index + 1 == len(projections):
                break
            for step in range(1, FRAMES_PER_LAYER):
                middle = between(projection, projections[index + 1], step / FRAMES_PER_LAYER)
                frames.append(_image(middle, frame, look))
                durations.append(MILLISECONDS_PER_FRAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path


def _embed(pacmap: Any, points: NDArray[np.float32], start: Points | None, seed: int) -> Points:
    # It warns for each layer that a seed was set, which is intended here.
    logging.getLogger("pacmap").setLevel(logging.ERROR)
    reducer = pacmap.PaCMAP(
        n_components=2, n_neighbors=min(10, len(points) // 4), random_state=seed, verbose=False
    )
    embedded = reducer.fit_transform(
        points, init="pca" if start is None else start.astype(np.float32)
    )
    return np.asarray(embedded, dtype=np.float64)


def _normalise(points: Points) -> Points:
    centred = points - points.mean(axis=0)
    radius = float(np.sqrt((centred**2).sum(axis=1).mean()))
    result: Points = centred / radius if radius > 0 else centred
    return result


def _figure(projection: Projection, frame: _Frame, look: Appearance) -> Figure:
    figure = new_figure(6.0, 6.0)
    axes = figure.add_subplot()
    sets = (
        (projection.good, look.good_color, look.good_label),
        (projection.bad, look.bad_color, look.bad_label),
    )
    for points, color, label in sets:
        axes.scatter(
            points[:, 0], points[:, 1], s=16, color=color, alpha=0.75, linewidths=0, label=label
        )
    axes.set_xlim(-frame.reach, frame.reach)
    # Leave room below the points for the legend.
    axes.set_ylim(-1.12 * frame.reach, frame.reach)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"{look.title}\nlayer {projection.layer} / {frame.last_layer}", fontsize=12)
    axes.legend(loc="lower right", frameon=False, fontsize=10, ncols=2)
    return figure


def _image(projection: Projection, frame: _Frame, look: Appearance) -> Image:
    """One image of the animation, reduced to 96 colours to keep the file small."""
    from PIL import Image

    figure = _figure(projection, frame, look)
    figure.set_dpi(80)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    return Image.fromarray(pixels[..., :3].copy()).quantize(96)
