"""What a direction does at one layer at a time, and which layers decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from heretic.records.selection import first_objective
from heretic.records.statistics import SIGNIFICANT, Paired, paired
from heretic.records.trial import Score, words_of

Change = Literal["removed", "added"]
Vector = Literal["direction", "random"]

CHANGES: tuple[Change, ...] = ("removed", "added")


@dataclass(frozen=True, slots=True)
class Effect:
    """Scores of a model that is changed after one layer.

    Attributes:
        layer: Counted from 0.
        change: Whether the vector is taken out of the layer's output, or added to it.
        vector: The layer's direction, or a random one of the same length.
    """

    layer: int
    change: Change
    vector: Vector
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class LayerEffects:
    """Effects of all chosen layers.

    Attributes:
        originals: Scores of the unchanged model, by change: each has prompts of its own.
        effects: For each layer and change, the direction and the random vector.
        prompts: Number of prompts whose replies are scored, by change.
        left_out: What was not measured, each with the reason.
    """

    originals: Mapping[Change, tuple[Score, ...]]
    effects: tuple[Effect, ...]
    prompts: Mapping[Change, int]
    left_out: tuple[str, ...] = ()

    @property
    def layers(self) -> list[int]:
        """The layers that were changed, ascending."""
        return sorted({effect.layer for effect in self.effects})

    def of(self, change: Change, vector: Vector) -> dict[int, tuple[Score, ...]]:
        """Scores by layer."""
        return {
            effect.layer: effect.scores
            for effect in self.effects
            if (effect.change, effect.vector) == (change, vector)
        }

    def deciding(self, change: Change) -> list[int] | None:
        """Layers at which the direction does what neither chance nor a random vector explains.

        The first objective is compared, prompt by prompt, with the original's and with that under
        the random vector; both differences must be significant after Bonferroni's correction for
        the number of layers, and of one sign: the direction does more than the random vector.

        Returns:
            None if nothing can be told: no objective has a value per prompt, or no layer decides
            and the prompts are too few for one to (`least_changes`).
        """
        original = self.originals.get(change)
        objective = None if original is None else first_objective(original)
        if original is None or objective is None or not objective.values:
            return None
        own, control = self.of(change, "direction"), self.of(change, "random")
        bound = SIGNIFICANT / max(1, len(own))
        found = []
        for layer, scores in own.items():
            score = named(scores, objective.name)
            others = (objective, named(control[layer], objective.name))
            tests = [paired(other.values, score.values) for other in others]
            if _is_beyond(*tests, bound=bound):
                found.append(layer)
        few = _can_change(change, objective) < least_changes(len(own))
        return None if few and not found else found

    def conclusion(self, change: Change) -> str:
        """What follows, in one sentence."""
        layers, original = self.deciding(change), self.originals.get(change)
        how = {"removed": "Taken out after", "added": "Added after"}[change]
        objective = None if original is None else first_objective(original)
        if objective is None or not objective.values:
            return f"{how} one layer: no score with a value per prompt, so that nothing is tested."
        if layers is None:
            return f"{how} one layer: {self._too_few(change, objective)}"
        name = words_of(objective.name)
        if not layers:
            return (
                f"{how} one layer alone, the direction changes {name} at no layer more than chance "
                f"and a random vector do (original {objective.short})."
            )
        own, control = self.of(change, "direction"), self.of(change, "random")
        return (
            f"{how} layer {_listed(layers)} alone, the direction changes {name} from "
            f"{objective.short} to {_range(own, layers, objective.name)}; a random vector "
            f"leaves {_range(control, layers, objective.name)}."
        )

    def _too_few(self, change: Change, objective: Score) -> str:
        count = len(self.of(change, "direction"))
        return (
            f"too few prompts to tell. With {count} layer{'s' if count > 1 else ''}, at least "
            f"{least_changes(count)} prompts must change alike, and "
            f"{_can_change(change, objective)} can (original {objective.short})."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "left_out": list(self.left_out),
            "changes": {
                change: {
                    "prompts": self.prompts[change],
                    "original": [score.to_dict(with_values=True) for score in original],
                    "deciding": self.deciding(change),
                    "conclusion": self.conclusion(change),
                    "layers": [
                        {
                            "layer": effect.layer,
                            "vector": effect.vector,
                            "scores": [score.to_dict(with_values=True) for score in effect.scores],
                        }
                        for effect in self.effects
                        if effect.change == change
                    ],
                }
                for change, original in self.originals.items()
            },
        }


def least_changes(layers: int) -> int:
    """How many prompts must change alike, and none otherwise, for a layer to be significant.

    The smallest p-value of n changes is 2 / 2^n, in McNemar's exact test as in a sign-flip test.

    Args:
        layers: Number of layers that are tested, for Bonferroni's correction.
    """
    return math.floor(math.log2(2 * max(1, layers) / SIGNIFICANT)) + 1


def _can_change(change: Change, original: Score) -> int:
    """How many prompts can change as the direction should change them.

    Taken out, it should bring the objective closer to its goal, added, farther from it.
    """
    values = original.values
    if any(value not in (0.0, 1.0) for value in values):
        return len(values)
    falls = (original.optimization == "minimize") == (change == "removed")
    return sum(value == falls for value in values)


def _is_beyond(original: Paired | None, control: Paired | None, *, bound: float) -> bool:
    """Whether a direction differs from both, and from the original more than the control does."""
    return (
        original is not None
        and control is not None
        and max(original.p, control.p) < bound
        and original.difference * control.difference > 0
    )


def named(scores: Sequence[Score], name: str) -> Score:
    """The score of that name."""
    return next(score for score in scores if score.name == name)


def _listed(layers: Sequence[int]) -> str:
    *before, last = map(str, layers)
    return f"{', '.join(before)} or {last}" if before else last


def _range(found: Mapping[int, Sequence[Score]], layers: Sequence[int], name: str) -> str:
    scores = sorted((named(found[layer], name) for layer in layers), key=lambda one: one.value)
    low, high = scores[0].short, scores[-1].short
    return low if low == high else f"between {low} and {high}"
