"""Which layers decide: the direction is taken out, or added, after one layer at a time.

| change | replies to | asks |
| --- | --- | --- |
| removed | bad evaluation prompts | does the behaviour need the direction there? |
| added | good evaluation prompts, in place of bad ones | is the direction enough for it? |

Taking out is directional ablation, adding is activation addition, as in Arditi et al. 2024 (arXiv
2406.11717), section 3, but after one layer only. What is added is the direction at its length:
as far as bad prompts lie from good ones along it. That is the mean difference only in a run that
takes means and projects nothing out (by default the good mean's direction is projected out). The
control is the run's directions after one random rotation, at the same lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from heretic.engine.prefill import Techniques
from heretic.errors import RunError, ScorerError
from heretic.evaluator.evaluator import Evaluator
from heretic.events import Reporter, Silent, StageFinished, StageProgress, StageStarted
from heretic.method.controls import rotated
from heretic.model.core import Model
from heretic.model.steering import Removal
from heretic.prompts import EvaluationPrompts, Prompt
from heretic.records.effects import Change, Effect, LayerEffects, Vector
from heretic.records.trial import Score
from heretic.scorers import Scorer

DEFAULT_LAYERS = 8
"""Layers that are tried unless they are named, spread evenly over the depth."""

PLAIN = Techniques(share_batches=False)
"""Each changed model is run once; checking that the fast engine fits it would take longer."""

NO_LENGTHS = "adding: the run kept no lengths of its directions (it is of an earlier release)"


def spread_layers(count: int, most: int = DEFAULT_LAYERS) -> list[int]:
    """At most so many of `count` layers, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(step * (count - 1) / (most - 1)) for step in range(most)})


def layer_effects(
    model: Model,
    prompts: EvaluationPrompts,
    scorers: Sequence[Scorer],
    directions: Tensor,
    *,
    differences: Tensor | None,
    layers: Sequence[int],
    most_prompts: int,
    max_response_length: int,
    seed: int,
    reporter: Reporter | None = None,
) -> LayerEffects:
    """Score the model with its layers' outputs changed, one layer at a time.

    Args:
        prompts: Evaluation prompts; the first `most_prompts` of each set are used.
        scorers: Those with prompt sets of their own are left out.
        directions: Unit or zero vectors, [layers + 1, hidden]; row l + 1 belongs to layer l.
        differences: The directions at their lengths, same shape; None leaves out adding.
        layers: Numbers of layers, from 0. Those without a direction are left out.
        max_response_length: New tokens of each reply.
        seed: Of the random rotation.

    Raises:
        ScorerError: No scorer is left.
        RunError: None of the layers has a direction.
        UnsupportedModelError: Layers carry several residual streams.
        ValueError: A layer does not exist, or the directions do not fit the model.
    """
    some, empty = _layers(model, directions, layers)
    used, left_out = _scorers(scorers)
    if empty:
        left_out.append(f"layers without a direction: {', '.join(map(str, empty))}")
    if differences is None:
        left_out.append(NO_LENGTHS)
    vectors: dict[Change, Tensor] = {"removed": directions}
    if differences is not None:
        vectors["added"] = differences
    good = prompts.good[:most_prompts]
    replied: dict[Change, Sequence[Prompt]] = {"removed": prompts.bad[:most_prompts], "added": good}
    originals: dict[Change, tuple[Score, ...]] = {}
    effects: list[Effect] = []
    reporter = reporter or Silent()
    steps = len(vectors) * (2 * len(some) + 1)
    reporter.emit(StageStarted("Changing one layer at a time", total=steps))
    for change, own in vectors.items():
        asked = replace(prompts, good=good, bad=replied[change], more={})
        evaluator = Evaluator(
            model, asked, used, max_response_length=max_response_length, techniques=PLAIN
        )
        for effect in _effects(model, evaluator, change, own, some, seed):
            if effect is None:
                originals[change] = evaluator.baseline
            else:
                effects.append(effect)
            reporter.emit(StageProgress(len(effects) + len(originals), steps, "evaluations"))
        evaluator.release()
    reporter.emit(StageFinished())
    counts = {change: len(replied[change]) for change in vectors}
    return LayerEffects(originals, tuple(effects), counts, tuple(left_out))


def _layers(model: Model, directions: Tensor, layers: Sequence[int]) -> tuple[list[int], list[int]]:
    """The layers with a direction and those without, ascending; errors as in `layer_effects`."""
    chosen = sorted(set(layers))
    wrong = [layer for layer in chosen if not 0 <= layer < model.n_layers]
    if wrong:
        raise ValueError(f"the model has layers 0 to {model.n_layers - 1}, not {wrong[0]}")
    Removal(model.get_layers(), directions)  # refuses what could not be changed later
    some = [layer for layer in chosen if directions[layer + 1].any()]
    if not some:
        named = ", ".join(map(str, chosen))
        raise RunError(f"None of the chosen layers has a direction in the run ({named}).")
    return some, [layer for layer in chosen if layer not in some]


def _scorers(scorers: Sequence[Scorer]) -> tuple[list[Scorer], list[str]]:
    """The scorers that read nothing but evaluation prompts, and why others are left out.

    Raises:
        ScorerError: None is left.
    """
    used = [scorer for scorer in scorers if not scorer.sets()]
    if not used:
        raise ScorerError(
            "No scorer of the run reads the evaluation prompts alone, so that none can tell what a "
            "layer does."
        )
    others = [scorer.name for scorer in scorers if scorer.sets()]
    return used, [f"{name}: it has prompts of its own" for name in others]


def _effects(
    model: Model,
    evaluator: Evaluator,
    change: Change,
    own: Tensor,
    layers: Sequence[int],
    seed: int,
) -> Iterator[Effect | None]:
    """None when the original is scored, then the effects."""
    _ = evaluator.baseline
    yield None
    both: Mapping[Vector, Tensor] = {"direction": own, "random": rotated(own, seed)}
    for layer in layers:
        for vector, vectors in both.items():
            alone = torch.zeros_like(vectors)
            alone[layer + 1] = vectors[layer + 1]
            with _changed(model, change, alone):
                yield Effect(layer, change, vector, evaluator.score_current())


def _changed(model: Model, change: Change, vectors: Tensor) -> AbstractContextManager[None]:
    return model.without(vectors) if change == "removed" else model.steered(vectors)
