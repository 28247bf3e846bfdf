"""Who scores which plans: what is lost is done by others, and who keeps failing is left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from heretic.cluster.crew import Batch, Crew, Done, Lost, Ready, Rivals, Unfit
from heretic.errors import StudyError
from heretic.events import Notice, Reporter
from heretic.records.trial import Trial

MAX_LOSSES = 3
"""A plan whose worker ended this often has failed: it may be what kills them."""

MAX_FAILURES = 4
"""A worker that failed this often, without a scored plan between, is left out. It is more than
`MAX_LOSSES`, so that a plan that kills workers does not end the search."""

STRAGGLES = 3.0
"""A task that takes this many times as long as the median of all is given to an idle worker too."""

HANGS = 10.0
"""A worker that takes this many times the median for what another has done since is replaced."""

FEWEST_TIMES = 5
"""Tasks that have ended before a median counts."""

LONG_WAIT = 60.0
"""Seconds after which it is said that workers are not ready."""

_PATIENCE = 1.0
"""Seconds after which stragglers are looked for, while nothing else happens."""

_WORDS = 300
"""Characters of a reason in a message."""


@dataclass(slots=True)
class _Worker:
    """A worker as the driver knows it.

    Attributes:
        node: Where it is; empty until it was ready once.
        ready: Whether it has loaded what it needs.
        task: What it works on.
        since: When it was given that, by the crew's clock.
        failures: How often it failed since it last scored a plan.
        out: Why it is left out, if it is.
    """

    node: str = ""
    ready: bool = False
    task: int | None = None
    since: float = 0.0
    failures: int = 0
    out: str | None = None

    @property
    def idle(self) -> bool:
        """Whether it can take a task."""
        return self.ready and self.task is None and self.out is None


@dataclass(slots=True)
class _Task:
    """Plans that are scored together.

    Attributes:
        since: When it was first given to a worker.
        on: Workers that have it now.
        losses: How often its worker ended.
        lost: The workers that ended.
        failed: Workers on which plans failed, with what they made of them.
    """

    batch: Batch
    since: float | None = None
    on: set[int] = field(default_factory=set)
    losses: int = 0
    lost: list[int] = field(default_factory=list)
    failed: dict[int, Sequence[Trial]] = field(default_factory=dict)


class WorkerPool:
    """A `heretic.search.pool.Pool` of workers that may end at any time.

    Args:
        crew: Carries out what is decided here.
        workers: Number of workers, all of which are started.
        reporter: Is told of losses.
        at_once: Plans that a worker evaluates together, at most.
        in_batches: See `Pool`.
        rivals: Asked for the rivals of plans when they are sent to a worker.
        needs: What a worker needs of one node, in words, for a notice where workers are not ready.
    """

    def __init__(
        self,
        crew: Crew,
        workers: int,
        reporter: Reporter,
        *,
        at_once: int = 1,
        in_batches: bool = False,
        rivals: Callable[[], Rivals] = lambda: None,
        needs: str = "a place",
    ) -> None:
        self.in_batches = in_batches
        self.at_once = at_once
        self._crew = crew
        self._reporter = reporter
        self._rivals = rivals
        self._needs = needs
        self._workers = {number: _Worker() for number in range(workers)}
        self._tasks: dict[int, _Task] = {}
        self._waiting: deque[int] = deque()  # tasks that no worker has
        self._ended: list[Trial] = []
        self._times: deque[float] = deque(maxlen=100)  # of the latest tasks, seconds
        self._told: Rivals = None
        self._next = 0
        self._absent = 0  # workers that are left out
        self._begin = crew.now()
        self._is_first_told = self._is_wait_told = False
        for worker in self._workers:
            crew.start(worker)

    @property
    def places(self) -> int:
        """How many plans the workers that are not left out can work on at a time.

        In batches it is as many as all can: proposals depend on the size of a batch.
        """
        return self.at_once * (len(self._workers) - (0 if self.in_batches else self._absent))

    def hand_in(self, batch: Batch) -> None:
        """Take plans; they are shared evenly among the workers that have nothing to do."""
        busy = sum(len(task.on) > 0 for task in self._tasks.values()) + len(self._waiting)
        free = max(1, len(self._workers) - self._absent - busy)
        size = min(self.at_once, -(-len(batch) // free))
        for start in range(0, len(batch), size):
            self._add(_Task(batch[start : start + size]))
        self._assign()

    def take(self) -> list[Trial]:
        """Wait until plans have ended; return their trials.

        Raises:
            StudyError: No worker is left.
        """
        self._hand_on_rivals()
        self._listen(0.0)  # whoever answered while the search did something else does not hang
        while not self._ended:
            self._check_present()
            self._replace_hanging()
            self._assign()
            self._tell_who_waits()
            self._listen(_PATIENCE)
        ended, self._ended = self._ended, []
        return ended

    def _listen(self, seconds: float) -> None:
        """Handle what workers tell, at most waiting that long for the first; then what is there."""
        while messages := self._crew.wait(seconds):
            for message in messages:
                self._handle(message)
            seconds = 0.0

    def _tell_who_waits(self) -> None:
        """Say once that workers are not ready; it may be that no node has what they need."""
        if self._is_wait_told or self._crew.now() - self._begin < LONG_WAIT:
            return
        self._is_wait_told = True
        waiting = [number for number in self._present() if not self._workers[number].ready]
        if waiting:
            self._tell(
                f"{len(waiting)} of {len(self._workers)} workers are not ready after a minute: "
                f"they load the model, or wait for {self._needs} on one node."
            )

    # --- what workers tell --------------------------------------------------------------------

    def _handle(self, message: Ready | Done | Lost | Unfit) -> None:
        worker = self._workers[message.worker]
        if worker.out is not None:
            return
        match message:
            case Ready(node=node):
                worker.ready, worker.node = True, node
                self._tell_of_first()
            case Done(task=task, trials=trials):
                worker.task = None
                self._settle(message.worker, task, trials)
            case Lost(why=why):
                self._lose(message.worker, why)
            case Unfit(why=why):
                self._leave_out(message.worker, why)

    def _settle(self, number: int, name: int, trials: Sequence[Trial]) -> None:
        """Take a task's trials, unless another worker was faster.

        Plans that failed are tried by another worker, once: where they succeed, the worker was at
        fault and not the plan.
        """
        task = self._tasks.get(name)
        if task is None:
            return
        task.on.discard(number)
        if task.since is not None:
            self._times.append(self._crew.now() - task.since)
        good = [trial for trial in trials if trial.state == "complete"]
        bad = [trial for trial in trials if trial.state != "complete"]
        if task.on and not good and not task.failed:  # another worker has it too, and may succeed
            task.failed[number] = bad
            return
        del self._tasks[name]
        if good:
            self._workers[number].failures = 0
            for other in task.failed:
                self._blame(other, task.failed[other])
        self._ended += good
        if bad and not task.failed and self._ready_but(number):
            plans = {trial.number for trial in bad}
            batch = [one for one in task.batch if one[0] in plans]
            self._add(_Task(batch, losses=task.losses, failed={number: bad}), first=True)
            return
        # Where both failed, what the first one said counts.
        before = {trial.number: trial for found in task.failed.values() for trial in found}
        self._ended += [before.get(trial.number, trial) for trial in bad]

    def _blame(self, number: int, failed: Sequence[Trial]) -> None:
        """Count a failure of plans that another worker scored."""
        worker = self._workers[number]
        worker.failures += 1
        if worker.out is None and worker.failures >= MAX_FAILURES:
            why = f"{worker.failures} times in a row, plans failed there and not elsewhere"
            task, worker.task = worker.task, None
            self._leave_out(number, f"{why}: {failed[-1].failure}")
            self._give_back(number, task)

    def _lose(self, number: int, why: str) -> None:
        """Start a worker that ended once more, unless it keeps failing; others get its task."""
        worker = self._workers[number]
        worker.failures += 1
        worker.ready = False
        task, worker.task = worker.task, None
        self._give_back(number, task, why)  # first: it may show that the plan is the cause
        if worker.failures >= MAX_FAILURES:
            self._leave_out(number, f"it failed {worker.failures} times in a row: {why}")
        else:
            self._tell(f"{self._named(number)} ended and is started again: {why}")
            self._crew.start(number)

    def _give_back(self, number: int, name: int | None, why: str | None = None) -> None:
        """Let others have the task of a worker that is gone.

        Args:
            why: Why it ended; None where the task cannot be the cause.
        """
        task = None if name is None else self._tasks.get(name)
        if task is None or name is None:
            return
        task.on.discard(number)
        if why is not None:
            task.losses += 1
            task.lost.append(number)
        if task.losses >= MAX_LOSSES:
            del self._tasks[name]
            self._drop(task, why or "")
        elif not task.on:
            self._waiting.appendleft(name)

    def _drop(self, task: _Task, why: str) -> None:
        """Split a task that ended its workers; one plan alone has failed. They are not at fault."""
        for number in task.lost:
            self._workers[number].failures -= self._workers[number].failures > 0
        if len(task.batch) > 1:
            for one in task.batch:
                self._add(_Task([one], losses=MAX_LOSSES - 1), first=True)
            return
        text = f"The worker ended {MAX_LOSSES} times while it scored this plan: {why}"
        self._ended += [
            Trial(number, plan, (), "failed", text[:_WORDS]) for number, plan in task.batch
        ]

    def _leave_out(self, number: int, why: str) -> None:
        self._workers[number].out = why
        self._absent += 1
        self._crew.stop(number)
        self._tell(f"{self._named(number)} is left out: {why}")

    # --- what workers do ----------------------------------------------------------------------

    def _assign(self) -> None:
        """Give tasks to idle workers: those that wait, then those that take too long elsewhere."""
        late = self._late()
        for number in self._idle():
            if not self._waiting and not late:
                return
            name = self._chosen(number, late)
            if name is None:
                continue
            task = self._tasks[name]
            if not task.on:
                task.since = self._crew.now()
            task.on.add(number)
            self._workers[number].task, self._workers[number].since = name, self._crew.now()
            self._crew.send(number, name, task.batch, self._rivals())

    def _hand_on_rivals(self) -> None:
        """Tell workers of a front that has changed since they got their plans."""
        rivals = self._rivals()
        if rivals is None or rivals == self._told:
            return
        self._told = rivals
        for number, worker in self._workers.items():
            if worker.task is not None:
                self._crew.tell(number, rivals)

    def _replace_hanging(self) -> None:
        """Start workers anew that others have long overtaken."""
        for number, worker in self._workers.items():
            is_overtaken = worker.task is not None and worker.task not in self._tasks
            if is_overtaken and worker.out is None and self._hangs(worker.since):
                self._lose(number, "it did not answer, and another worker did long ago")

    def _chosen(self, number: int, late: deque[int]) -> int | None:
        """A task for a worker; where its plans failed, or it ended, it comes last.

        Args:
            late: Where none waits, one of these is taken out. One whose plans failed on this
                worker is left to the other, as they would fail again, unless that one hangs.
        """
        for name in self._waiting:
            tried = {*self._tasks[name].failed, *self._tasks[name].lost}
            if number not in tried or not self._ready_but(number) - tried:
                self._waiting.remove(name)
                return name
        for name in late:
            if number not in self._tasks[name].failed or self._hangs(self._tasks[name].since):
                late.remove(name)
                return name
        return None

    def _hangs(self, since: float | None) -> bool:
        """Whether a worker that was given something then is taken to answer no more."""
        if since is None or len(self._times) < FEWEST_TIMES:
            return False
        return self._crew.now() - since > HANGS * median(self._times)

    def _late(self) -> deque[int]:
        """Tasks that one worker alone has for too long, those that are late the longest first."""
        if len(self._times) < FEWEST_TIMES:
            return deque()
        since = self._crew.now() - STRAGGLES * median(self._times)
        late = [
            (task.since, name)
            for name, task in self._tasks.items()
            if len(task.on) == 1 and task.since is not None and task.since < since
        ]
        return deque(name for _, name in sorted(late))

    def _add(self, task: _Task, *, first: bool = False) -> None:
        self._tasks[self._next] = task
        if first:
            self._waiting.appendleft(self._next)
        else:
            self._waiting.append(self._next)
        self._next += 1

    def _present(self) -> list[int]:
        """Numbers of the workers that are not left out."""
        return [number for number, worker in self._workers.items() if worker.out is None]

    def _ready_but(self, number: int) -> set[int]:
        """The workers, but for one, that can take plans now or later."""
        ready = {other for other in self._present() if self._workers[other].ready}
        return ready - {number}

    def _idle(self) -> Iterable[int]:
        return [number for number, worker in self._workers.items() if worker.idle]

    def _check_present(self) -> None:
        """Raise if no worker is left.

        Raises:
            StudyError: None is.
        """
        if self._absent < len(self._workers):
            return
        reasons = dict.fromkeys(worker.out for worker in self._workers.values())
        raise StudyError(
            f"No worker is left that could score plans. {' '.join(f'{why}.' for why in reasons)}",
            remedy="Mend that, and start the same command again: the run goes on. Without "
            "--workers, this process alone searches.",
        )

    def _named(self, number: int) -> str:
        node = self._workers[number].node
        return f"Worker {number}{f' on {node}' if node else ''}"

    def _tell(self, text: str) -> None:
        self._reporter.emit(Notice(text, level="warning"))

    def _tell_of_first(self) -> None:
        if not self._is_first_told:
            self._is_first_told = True
            self._reporter.emit(Notice(f"The first of {len(self._workers)} workers is ready."))
