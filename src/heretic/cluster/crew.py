"""What workers are told and what they tell, as plain data; who runs them is left open.

`heretic.cluster.pool` decides who scores what; a crew carries it out. The one in
`heretic.cluster.ray_crew` has processes on Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from heretic.records.plan import Plan
from heretic.records.trial import Trial

Batch = Sequence[tuple[int, Plan]]
"""Numbers of trials, and their plans."""

Rivals = Collection[tuple[float, ...]] | None
"""Objectives of the front's trials, by which an evaluation may end early; None: it never does."""

Score = Callable[[Batch, Rivals], list[Trial]]
"""Scores plans together; what fails alone is a failed trial and no error."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker does. All of it is sent to other processes.

    Attributes:
        prove: Tells what has to be equal on all nodes, before anything is loaded.
        proof: What it tells on the driver's node.
        open: Gets ready to score, given `data`; takes as long as a model takes to load.
        data: Sent once to each node.
    """

    prove: Callable[[], Mapping[str, str]]
    proof: Mapping[str, str]
    open: Callable[[Any], Score]
    data: Any


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker can take plans."""

    worker: int
    node: str


@dataclass(frozen=True, slots=True)
class Done:
    """A worker has ended a task.

    Attributes:
        task: Number of the task.
    """

    worker: int
    task: int
    trials: Sequence[Trial]


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone: its process or its node has ended, or it could not get ready."""

    worker: int
    why: str


@dataclass(frozen=True, slots=True)
class Unfit:
    """A worker must not score plans: its node has another model, plugin or package."""

    worker: int
    why: str


Message = Ready | Done | Lost | Unfit


class Crew(Protocol):
    """Workers, known by their numbers."""

    def start(self, worker: int) -> None:
        """Start a worker's process, in place of one that is gone; does not wait for it."""

    def stop(self, worker: int) -> None:
        """End a worker's process; it sends no message from now on."""

    def send(self, worker: int, task: int, batch: Batch, rivals: Rivals) -> None:
        """Give a task to a worker that has none."""

    def tell(self, worker: int, rivals: Rivals) -> None:
        """Hand rivals on to a worker that is scoring."""

    def wait(self, seconds: float) -> Sequence[Message]:
        """Wait for messages, at most that long; there may be none."""

    def now(self) -> float:
        """Seconds, from a fixed point on."""
