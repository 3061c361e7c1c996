"""One training on one pool: `raymix train` with several workers."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable

import ray

from raymix.cluster.config import Cluster
from raymix.cluster.fleet import Fleet, beat
from raymix.cluster.nodes import check_nodes, terms
from raymix.cluster.pool import Pool, open_desk
from raymix.cluster.session import connected, environment, planned, suited
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
    with (
        connected(cluster),
        terms(setup) as asked,
        tempfile.TemporaryDirectory(prefix="raymix-") as scratch,
    ):
        plan = planned(cluster.model_copy(update={"pools": 1}))
        check_nodes(asked, plan.need)
        name = f"raymix-desk-{uuid.uuid4().hex[:8]}"
        desk = open_desk(name)

        def failed(pool: str, error: Exception) -> None:
            broken.append(error)
            desk.close.remote()

        serving = {
            "factory": trainer,
            "setup": encode(setup),
            "terms": encode(asked),
            "beat": beat(cluster.step_timeout),
        }
        fleet = Fleet(
            desk,
            lambda pool, broke: Pool(pool, name, plan.need, serving, scratch, broke),
            lambda: 1,
            cluster.step_timeout,
            failed,
            lambda by: None,
        )
        finished = False
        try:
            with environment(suited(plan)):
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
