"""The figures of the method, how far a fit has come, and the file that keeps this."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from heretic.method.fits import Fit
from heretic.records.plan import Plan
from heretic.search.fitting.texts import Pushed

_STATE = "state"


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Figures of the method, which no user needs to set.

    Attributes:
        trade_offs: Nats of damage that one unit of the push is worth, in each round.
        steps: Steps in a round.
        good, wanted, pushed: Texts of each kind in a step.
        newest: Share of the pushed texts in a step that come from the last look, if it found so
            many: what was found earlier is mostly unlikely by now.
        kept_tokens: Length of the replies to good prompts along which the model shall not change.
        look_tokens: Length of the replies that are looked at.
        span: Tokens of the deciding words that are pushed away together.
        aim: Their joint log-probability, below which they hardly pull.
        rate: Length of a vector's first step of a round, if all its numbers move the same way.
        last: Share of the first step's length that the last step of a round has.
        decays: Adam's decay rates.
        lowest: Share of the layers, from the first on, that is not edited.
        tried: Rounds after which a teacher is asked for, if the share of replies that show the
            behaviour is still above `stuck` of the original's.
        stuck: See there.
        gone: The path ends when a smaller share of the replies shows the behaviour.
        weak: If a larger share shows it at the path's end, an ablation is tried beside the fit.
        rank: Pairs of vectors for each writer.
    """

    trade_offs: Sequence[float] = (0.05, 0.1, 0.1, 0.05, 0.05, 0.2)
    steps: int = 10
    good: int = 8
    wanted: int = 4
    pushed: int = 8
    newest: float = 0.75
    kept_tokens: int = 24
    look_tokens: int = 96
    span: int = 4
    aim: float = -2.5
    rate: float = 0.05
    last: float = 0.2
    decays: tuple[float, float] = (0.9, 0.95)
    lowest: float = 0.3
    tried: int = 2
    stuck: float = 0.75
    gone: float = 0.01
    weak: float = 0.1
    rank: int = 1


DEFAULTS = FitOptions()


@dataclass(slots=True)
class Progress:
    """How far a fit has come; from here it goes on, in another process too.

    Attributes:
        points: Write and read vectors [components, layers, k, hidden] after each round.
        alone: Those of the rounds before there was a teacher; the path until it has a point.
        moments: Adam's averages of gradients and squared gradients, of both.
        steps: Steps taken.
        pushed: What is pushed away, in the order in which it was found.
        found: How many of these the last look found.
        asked: Whether a teacher was asked for.
        teacher: The ablation whose replies are wanted; None without one.
        shown: Share of replies that showed the behaviour or were broken, originally and after
            each round.
    """

    points: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    alone: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    steps: int = 0
    pushed: list[Pushed] = field(default_factory=list)
    found: int = 0
    asked: bool = False
    teacher: Plan | None = None
    shown: list[float] = field(default_factory=list)

    @property
    def path(self) -> list[tuple[Tensor, Tensor]]:
        """The points so far."""
        return self.points or self.alone

    def is_over(self, options: FitOptions) -> bool:
        """Whether all rounds are made, or hardly any reply showed the behaviour after the last."""
        if not self.points:
            return False
        return len(self.points) == len(options.trade_offs) or self.shown[-1] < options.gone

    def is_stuck(self, options: FitOptions) -> bool:
        """Whether pushing alone was tried, and nearly as many replies show the behaviour.

        Then a teacher is asked for next.
        """
        tried = len(self.points) == options.tried and not self.asked
        return tried and self.shown[-1] > options.stuck * self.shown[0]

    def is_weak(self, options: FitOptions) -> bool:
        """Whether all rounds are made, and many replies show the behaviour, without a teacher."""
        return self.is_over(options) and not self.asked and self.shown[-1] > options.weak

    def fit(self, components: Sequence[str]) -> Fit:
        """The path so far; it has a point."""
        write, read = (torch.stack(parts) for parts in zip(*self.path, strict=True))
        return Fit(tuple(components), write, read)


def to_content(progress: Progress, options: FitOptions) -> bytes:
    """A safetensors file; JSON that goes with the tensors is a tensor of bytes."""
    from safetensors.torch import save

    state = {
        "options": repr(options),
        "steps": progress.steps,
        "pushed": [[list(text.ids), list(text.targets)] for text in progress.pushed],
        "found": progress.found,
        "shown": progress.shown,
        "asked": progress.asked,
        "teacher": None if progress.teacher is None else progress.teacher.to_dict(),
        "points": len(progress.points),
        "alone": len(progress.alone),
    }
    tensors = {_STATE: torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)}
    tensors |= _named("point", progress.points) | _named("alone", progress.alone)
    tensors |= _named("moment", progress.moments)
    return save(tensors)


def from_content(content: bytes, options: FitOptions) -> Progress | None:
    """Read what `to_content` returned; None if it was made with other options.

    The file's digest is checked when it is read, so its content is what this module wrote.
    """
    from safetensors.torch import load

    tensors = load(content)
    state = json.loads(bytes(tensors[_STATE].tolist()))
    if state["options"] != repr(options):
        return None
    return Progress(
        points=_pairs("point", tensors, state["points"]),
        alone=_pairs("alone", tensors, state["alone"]),
        moments=_pairs("moment", tensors, 2),
        steps=state["steps"],
        pushed=[Pushed(tuple(ids), tuple(targets)) for ids, targets in state["pushed"]],
        found=state["found"],
        shown=state["shown"],
        asked=state["asked"],
        teacher=None if state["teacher"] is None else Plan.from_dict(state["teacher"]),
    )


def _named(name: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{name}.{number}.{side}": part.contiguous()
        for number, pair in enumerate(pairs)
        for side, part in enumerate(pair)
    }


def _pairs(name: str, tensors: dict[str, Tensor], count: int) -> list[tuple[Tensor, Tensor]]:
    return [(tensors[f"{name}.{i}.0"], tensors[f"{name}.{i}.1"]) for i in range(count)]
