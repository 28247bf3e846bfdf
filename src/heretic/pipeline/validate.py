"""Score a chosen plan with vectors that should not work: what does its direction carry?

A plan that removes a behaviour may do so by the size of its edit, by erasing the topic, or by
erasing the behaviour. Each control keeps the plan, with its ablation weights and layers, and
replaces the vectors:

| control | vectors |
| --- | --- |
| `shuffled` | directions of the run's own direction prompts, good and bad ones mixed at random |
| `random` | the run's directions, or the vectors of a fit, rotated at random |
| `layers` | for a fit only: its vectors in other layers |
| `topic` | directions of prompts about the same topic that do not trigger the behaviour |

Shuffled labels are the null of a permutation test (Ojala and Garriga 2010), here of the whole way
from prompts to scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from heretic import prompts as prompt_sets
from heretic.config.settings import Settings
from heretic.errors import RunError, StudyError
from heretic.events import Silent, StageFinished, StageStarted
from heretic.method.controls import mixed, moved_fit, rotated, rotated_fit
from heretic.pipeline.identity import trial_key
from heretic.pipeline.kept import kept
from heretic.pipeline.stages import compute_directions, scores_line
from heretic.prompts import Prompt
from heretic.records.controls import Control, Kind, conclusion
from heretic.records.plan import FittedKernel, Plan
from heretic.records.trial import Score, Trial
from heretic.runs.folder import digest
from heretic.scorers.registry import behavior_shown, shows_behavior

if TYPE_CHECKING:
    from heretic.pipeline.run import Session

FILE = "controls.json"

METHOD = 1
"""Raised when controls are made in another way, so that kept figures are not taken for new ones."""

TOPIC_REPLIES = 50
"""Most topic prompts whose replies are read, to see whether they show the behaviour."""


@dataclass(frozen=True, slots=True)
class Validation:
    """A chosen plan beside its controls.

    Attributes:
        baseline: Scores of the unedited model.
        controls: The chosen plan first.
        left_out: Controls that were not made, each with the reason.
    """

    trial: Trial
    baseline: tuple[Score, ...]
    controls: tuple[Control, ...]
    left_out: tuple[str, ...]

    @property
    def conclusion(self) -> str:
        """What follows, in one sentence."""
        return conclusion(self.baseline, self.controls)


def load_topic(settings: Settings) -> list[Prompt]:
    """The prompts of the setting `topic_prompts`; none if it is not set.

    Raises:
        PromptError: They cannot be read.
    """
    topic = settings.topic_prompts
    return [] if topic is None else prompt_sets.load(topic, settings.system_prompt)


def validate(
    session: Session, trial: Trial, topic: Sequence[Prompt] = (), *, draws: int = 3
) -> Validation:
    """Score a trial's plan again, and with the vectors of each control.

    Scores that the run folder holds already are read from there; each is kept as soon as it is
    measured. Draws follow from the run's seed.

    Args:
        topic: Prompts about the topic of the bad prompts that do not trigger the behaviour.
        draws: Number of random draws of each kind.

    Raises:
        RunError: The plan edits nothing, so that no control could differ from it; or the run folder
            cannot be written to.
        StudyError: The topic and the good prompts leave the same residuals, or a score is not
            finite.
    """
    _check_edits(session, trial.plan)
    fitted, few = bool(trial.plan.fits), session.model.n_layers < 2
    kinds: list[Kind] = ["random", "layers"] if fitted else ["shuffled", "random"]
    wanted = [(kind, draw) for kind in kinds for draw in range(1, draws + 1)]
    left_out = []
    if fitted:
        left_out.append(
            "shuffled labels and topic: the plan is a fit, which uses no directions, and another "
            "fit would be another search"
        )
        if few:
            wanted = [(kind, draw) for kind, draw in wanted if kind != "layers"]
            left_out.append("other layers: the model has one")
    elif topic:
        wanted.append(("topic", 0))
        if not shows_behavior(session.evaluator.scorers):
            left_out.append(
                "a look at replies to the topic prompts: no objective tells of a single reply "
                "whether it shows the behaviour"
            )
    else:
        left_out.append("topic: topic_prompts is not set")
    found = [_kept(session, trial, kind, draw, topic) for kind, draw in [("chosen", 0), *wanted]]
    return Validation(trial, session.evaluator.baseline, tuple(found), tuple(left_out))


def _check_edits(session: Session, plan: Plan) -> None:
    if not session.model.plan_edits(plan, session.directions):
        raise RunError(
            "The chosen plan edits nothing, so no control can differ from it.",
            remedy="Choose another trial by --trial-index.",
        )


def _kept(
    session: Session, trial: Trial, kind: Kind, draw: int, topic: Sequence[Prompt]
) -> Control:
    """The scores of one control, from the run folder or measured now."""
    words = [(prompt.system, prompt.user) for prompt in topic] if kind == "topic" else []
    what = {"kind": kind, "draw": draw, "topic": words, "seed": session.manifest.seed}
    key = trial_key(session, session.prompts.evaluation, trial, control=what, method=METHOD)
    control = Control(kind, draw, ())
    session.reporter.emit(StageStarted(f"Scoring with {control.title}"))
    measure = partial(_measured, session, trial.plan, control, topic)
    found = kept(session.folder, FILE, key, measure, Control.from_dict)
    session.reporter.emit(StageFinished(scores_line(found.scores)))
    return found


def _measured(session: Session, plan: Plan, control: Control, topic: Sequence[Prompt]) -> Control:
    drawn = {"seed": session.manifest.seed, "kind": control.kind, "draw": control.draw}
    seed = int(digest(drawn), 16)
    directions = session.directions
    if plan.fits and control.kind != "chosen":
        plan = _with_other_fits(session, plan, control.kind, seed)
    elif control.kind == "random":
        directions = rotated(directions, seed)
    elif control.kind == "shuffled":
        directions = _directions(session, *mixed(session.prompts.good, session.prompts.bad, seed))
    elif control.kind == "topic":
        directions = _directions(session, session.prompts.good, topic)
        control = replace(control, shows=_shown(session, topic))
    scores = session.evaluator.evaluate([plan], directions=directions)[0]
    wrong = [score.name for score in scores if not score.is_sound]
    if wrong:  # and those that would have come after it are unknown
        raise StudyError(
            f"With {control.title} a score is not finite: {', '.join(wrong)}.",
            remedy="Choose a trial that edits less, by --trial-index.",
        )
    return replace(control, scores=scores)


def _directions(session: Session, good: Sequence[Prompt], bad: Sequence[Prompt]) -> Tensor:
    """Directions made as those of the run, from other prompts."""
    sets = replace(session.prompts, good=good, bad=bad)
    return compute_directions(session.settings, session.model, sets, Silent())


def _with_other_fits(session: Session, plan: Plan, kind: Kind, seed: int) -> Plan:
    """The plan with the vectors of its fits rotated, or moved to other layers."""
    make = rotated_fit if kind == "random" else moved_fit
    others = {digest: make(session.model.fits[digest], seed) for digest in plan.fits}
    session.model.add_fits(others.values())
    return replace(plan, kernels=tuple(_renamed(plan, {k: f.digest for k, f in others.items()})))


def _renamed(plan: Plan, names: dict[str, str]) -> Iterator[tuple[str, FittedKernel]]:
    for component, kernel in plan.kernels:
        assert isinstance(kernel, FittedKernel)
        yield component, replace(kernel, fit=names[kernel.fit])


def _shown(session: Session, topic: Sequence[Prompt]) -> tuple[int, int] | None:
    """To how many of the first topic prompts the original's reply shows the behaviour.

    None where no scorer can tell.
    """
    if not shows_behavior(session.evaluator.scorers):
        return None
    shows = behavior_shown(session.evaluator.scorers, session.settings.refusal_markers)
    read = list(topic[:TOPIC_REPLIES])
    return sum(map(shows, session.model.get_responses_batched(read))), len(read)
