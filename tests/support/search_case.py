"""A search without a model: scores are a function of the plan. Also a program, to be killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from heretic.events import Event, Notice
from heretic.records import ATTENTION, MLP, Kernel, Plan, Score
from heretic.records.trial import Optimization
from heretic.runs.folder import RunFolder
from heretic.search import SearchSpace, Study
from heretic.search.trying import Evaluate

N_LAYERS = 24
N_STARTUP = 6
BOTH: tuple[Optimization, ...] = ("minimize", "minimize")
OUTSIDE = tuple(
    Plan.create(
        direction_scope="mean",
        direction_index=None,
        kernels={MLP: Kernel(weight, 1.0, 0.5, 30.0)},
        row_normalization="pre",
    )
    for weight in (4.0, 3.0, 2.0, 1.0)
)
"""Plans that lie outside the space, from which the sampler learns nothing."""


class Recorder:
    """A reporter that keeps all events."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def notices(self, level: str | None = None) -> list[str]:
        """Texts of the notices, of one level or of all."""
        return [one.text for one in self.of(Notice) if level in (None, one.level)]


def measure(plan: Plan) -> tuple[Score, ...]:
    """More weight gives fewer refusals and a larger divergence."""
    (attention,), (mlp,) = plan.ablation_weights(ATTENTION, 20), plan.ablation_weights(MLP, 18)
    refusals = max(0.0, 1.0 - attention / 2 - mlp / 3)
    divergence = (attention**2 + mlp**2) / 5
    return (
        Score("refusals", refusals, "minimize", f"{refusals:.2f}"),
        Score("kl_divergence", divergence, "minimize", f"{divergence:.3f}"),
    )


def one_by_one(measured: Callable[[Plan], tuple[Score, ...]]) -> Evaluate:
    """An evaluation of some plans from that of a single one."""
    return lambda plans: [measured(plan) for plan in plans]


def evaluate(plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
    """What most searches here evaluate by."""
    return [measure(plan) for plan in plans]


def make_study(folder: RunFolder | Path, *, seed: int = 7, objectives=BOTH, **options) -> Study:
    if isinstance(folder, Path):
        folder = RunFolder(folder)
    space = options.pop("space", None) or SearchSpace(N_LAYERS, [ATTENTION, MLP])
    options = {"n_startup_trials": N_STARTUP, **options}
    return Study(folder, space, objectives=objectives, seed=seed, **options)


def killed_in_trial(folder: Path, n_trials: int, fatal: int) -> None:
    """Search, and die by SIGKILL in the middle of the evaluation with index `fatal`."""
    calls = 0

    def deadly(plans: Sequence[Plan]) -> list[tuple[Score, ...]]:
        nonlocal calls
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return evaluate(plans)

    make_study(folder).run(deadly, n_trials)


def hold(folder: Path) -> None:
    """Lock the run, say so, and wait to be told to go."""
    with RunFolder(folder).lock():
        print("locked", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold(Path(sys.argv[2]))
    else:
        killed_in_trial(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
