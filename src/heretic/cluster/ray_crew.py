"""Workers as actors on Ray: the only module that speaks to actors."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heretic.cluster.crew import Batch, Done, Job, Lost, Message, Ready, Rivals, Score, Unfit
from heretic.records.trial import Trial
from heretic.system.display import safe_line
from heretic.system.machine import differences

if TYPE_CHECKING:
    from ray import ObjectRef

_WORDS = 200
_CALLS = "calls"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Share:
    """What each worker takes of its node.

    Attributes:
        threads: Threads of its computations, at least 1.
        cpus: What Ray reserves for it; 0 where there are fewer processors than workers.
        gpus: GPUs; a model spans them through the device map.
    """

    threads: int
    cpus: int
    gpus: int


class Actor:
    """A worker in its own process. Its methods run one by one, but for `tell`."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._score: Score | None = None
        self._rivals: list[tuple[float, ...]] | None = None

    def prove(self, prove: Callable[[], Mapping[str, str]]) -> tuple[str, Mapping[str, str]]:
        """The name of its node, and what it says there."""
        return socket.gethostname(), prove()

    def open(self, opened: Callable[[Any], Score], data: Any) -> None:
        """Load what it needs."""
        import torch

        torch.set_num_threads(self._threads)
        self._score = opened(data)

    def score(self, batch: Batch, rivals: Rivals) -> list[Trial]:
        """Score plans."""
        assert self._score is not None
        self._rivals = None if rivals is None else list(rivals)
        return self._score(batch, self._rivals)

    def tell(self, rivals: Sequence[tuple[float, ...]]) -> None:
        """Take rivals while plans are being scored."""
        known = self._rivals
        if known is not None:
            known += [rival for rival in rivals if rival not in known]


@dataclass(slots=True)
class _Member:
    """A worker's actor, and what it was asked last.

    Attributes:
        actor: A handle, as Ray gives it.
        stage: `prove`, `open`, or `score`.
    """

    actor: Any
    stage: str
    asked: ObjectRef[Any] | None
    node: str = ""
    task: int = -1


class RayCrew:
    """A `heretic.cluster.crew.Crew` on the Ray that this process is connected to.

    Args:
        job: What workers do; its data is put into Ray's object store once.
        share: What each takes of its node.
    """

    def __init__(self, job: Job, share: Share) -> None:
        import ray

        self._ray = ray
        self._job = job
        self._data = ray.put(job.data)
        self._share = share
        self._members: dict[int, _Member] = {}
        # An actor that has ended is started again by the pool, which knows what it worked on.
        # Ray's own types know neither groups of calls nor an actor's methods.
        options: dict[str, Any] = {
            "num_cpus": share.cpus,
            "num_gpus": share.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "concurrency_groups": {_CALLS: 1},
        }
        self._kind: Any = ray.remote(**options)(Actor)

    def start(self, worker: int) -> None:
        """Start an actor, and let it prove what its node has."""
        self.stop(worker)
        actor = self._kind.remote(self._share.threads)
        self._members[worker] = _Member(actor, "prove", actor.prove.remote(self._job.prove))

    def stop(self, worker: int) -> None:
        """End an actor's process."""
        member = self._members.pop(worker, None)
        if member is not None:
            self._ray.kill(member.actor, no_restart=True)

    def send(self, worker: int, task: int, batch: Batch, rivals: Rivals) -> None:
        """Let an actor score plans."""
        member = self._members[worker]
        member.stage, member.task = "score", task
        member.asked = member.actor.score.remote(batch, rivals)

    def tell(self, worker: int, rivals: Rivals) -> None:
        """Hand rivals on; nobody waits for the answer."""
        actor = self._members[worker].actor
        actor.tell.options(concurrency_group=_CALLS).remote(list(rivals or ()))

    def wait(self, seconds: float) -> list[Message]:
        """What actors have answered."""
        asked = {member.asked: number for number, member in self._members.items() if member.asked}
        if not asked:
            time.sleep(seconds)
            return []
        ended, _ = self._ray.wait(list(asked), num_returns=1, timeout=seconds)
        if ended:  # those that came with it
            ended, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
        found = [self._message(asked[reference], reference) for reference in ended]
        return [message for message in found if message is not None]

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def close(self) -> None:
        """End all actors."""
        for worker in list(self._members):
            self.stop(worker)

    def _message(self, number: int, reference: ObjectRef[Any]) -> Message | None:
        """What an answer means; None where there is something else to ask first."""
        member = self._members[number]
        member.asked = None
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return self._failure(number, member, error)
        if member.stage == "prove":
            member.node, told = answer
            why = differences(self._job.proof, told)
            if why:
                return Unfit(number, f"its node {member.node} has {why}")
            member.stage = "open"
            member.asked = member.actor.open.remote(self._job.open, self._data)
            return None
        if member.stage == "open":
            return Ready(number, member.node)
        return Done(number, member.task, answer)

    def _failure(self, number: int, member: _Member, error: Exception) -> Message:
        _log.warning("Worker %d failed at %s", number, member.stage, exc_info=error)
        why = reason(error)
        if member.stage == "prove" and isinstance(error, self._ray.exceptions.RayTaskError):
            return Unfit(number, f"its node cannot tell what it has: {why}")
        return Lost(number, why)


def reason(error: Exception) -> str:
    """Why an actor failed, in one line: its own error, or how its process ended."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {safe_line(str(cause))}"[:_WORDS]
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = next((line for line in said if line.startswith("The actor is dead")), "")
    return safe_line(detail or " ".join(said) or type(error).__name__)[:_WORDS]
