"""A program: a search on a Ray of two nodes, one of which is lost on the way, and replaced.

It is a program of its own because Ray keeps how it authenticates for as long as a process lives.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heretic.cluster.pool import WorkerPool
from heretic.cluster.ray_crew import RayCrew
from heretic.cluster.ray_start import answer_to_stranger, joined_ray, nodes_of_ray, share_of
from heretic.errors import HereticError
from tests.support.ray_case import Killer, job
from tests.support.search_case import make_study

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

N_TRIALS = 24


def refusal(address: str) -> str:
    """What joining it without the user's consent says, though this process has a token."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 32)
    try:
        with joined_ray(address, allow_unauthenticated=False):
            return "joined"
    except HereticError as error:
        return str(error)
    finally:
        os.environ["RAY_AUTH_MODE"] = "disabled"


def started() -> Cluster:
    """A cluster of one node, which a busy machine may not start within Ray's 30 seconds."""
    from ray.cluster_utils import Cluster  # not in the tests' process, which starts a Ray itself

    for attempts_left in (2, 1, 0):
        try:
            return Cluster(
                initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
            )
        except Exception as error:
            if not attempts_left or "timed out" not in str(error):
                raise
    raise AssertionError


def searched(folder: Path) -> dict[str, Any]:
    cluster = started()
    nodes = [cluster.add_node(num_cpus=1)]

    def change() -> None:
        if nodes:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        else:
            cluster.add_node(num_cpus=1)

    found: dict[str, Any] = {"refusal": refusal(cluster.address)}
    try:
        found["open"] = answer_to_stranger(cluster.address)
        with joined_ray(cluster.address, allow_unauthenticated=True):
            share = share_of(nodes_of_ray(), workers=2, gpus=0)
            killer = Killer(change, {6, 12})
            crew = RayCrew(job(0.5), share)  # long enough for Ray to notice the loss
            pool = WorkerPool(crew, 2, killer, in_batches=False)
            trials = make_study(folder, n_startup_trials=1000).run(pool, N_TRIALS, killer)
            crew.close()
    finally:
        cluster.shutdown()
    return {
        **found,
        "share": [share.threads, share.cpus],
        "scores": [[score.value for score in trial.scores] for trial in trials],
        "warnings": killer.notices("warning"),
    }


if __name__ == "__main__":
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    print(json.dumps(searched(Path(sys.argv[1]))))
