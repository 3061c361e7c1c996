"""One training on one pool: `raymix train` with several workers."""

from __future__ import annotations

from collections.abc import Callable

import ray

from raymix.cluster.config import Cluster
from raymix.cluster.fleet import Fleet, ground
from raymix.cluster.session import environment, suited
from raymix.cluster.tune import TRAINER
from raymix.core.codec import decode, encode
from raymix.core.errors import ClusterError
from raymix.core.job import Point, TrainJob, TrainResult
from raymix.train.config import Setup


def train_on_pool(
    job: TrainJob,
    setup: Setup,
    cluster: Cluster,
    report: Callable[[int, Point], bool],
    trainer: str = TRAINER,
) -> TrainResult:
    """Run `job` on a pool of `cluster.num_workers` workers and wait for its result.

    Raises ClusterError at once where the cluster cannot hold the pool, or when the pool breaks.
    """
    broken: list[Exception] = []
    with ground(cluster.model_copy(update={"pools": 1}), setup, trainer) as ready:
        desk = ready.desk

        def failed(pool: str, error: Exception) -> None:
            broken.append(error)
            desk.close.remote()

        def room() -> int:
            ready.look()
            return 1

        fleet = Fleet(desk, ready.make, room, cluster.step_timeout, failed, lambda by: None)
        finished = False
        try:
            with environment(suited(ready.plan)):
                fleet.start(1)
                ray.get(desk.submit.remote(encode(job), False))
                while "point" in (event := ray.get(desk.next.remote(job.trial))):
                    report(job.trial, decode(Point, event["point"]))
            finished = "result" in event
        finally:
            fleet.close(hurry=not finished)
    if not finished:
        raise broken[0] if broken else ClusterError("the pool ended before the training did")
    return decode(TrainResult, event["result"])
