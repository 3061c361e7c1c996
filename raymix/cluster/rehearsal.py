"""Several Ray nodes on one machine: a rehearsal of what a real cluster does, losses included."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil  # comes with Ray
import ray
from ray._private import services
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from raymix.cluster.session import quiet

_STORE_BYTES = 80_000_000
"""Object store of a node. Data and weights are memory-mapped files, never objects."""

_START = 150.0
"""Seconds that a node may take to start."""

_NOTICED = {"health_check_period_ms": 1000}
"""A dead node is known to be dead after five seconds, in place of fifteen."""


@contextmanager
def rehearsal(nodes: int, cpus: int) -> Iterator[Cluster]:
    """As `machines`; this process is connected to them, which ends with the context, too."""
    with machines(nodes, cpus) as cluster:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield cluster
        finally:
            ray.shutdown()


@contextmanager
def machines(nodes: int, cpus: int) -> Iterator[Cluster]:
    """A head without CPUs and `nodes` nodes with `cpus` each.

    All of it ends with the context. Nodes know the environment and the folder of this process as
    they are when the node starts.
    """
    small = {"object_store_memory": _STORE_BYTES}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": _NOTICED, **small}
    # What Ray says of other clusters on this machine is of no concern here.
    with patient():
        with quiet():
            cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(nodes):
                join(cluster, cpus)
            yield cluster
        finally:
            cluster.shutdown()


@contextmanager
def patient() -> Iterator[None]:
    """Ray gives a node that it starts here half a minute; on a busy machine it may need longer."""
    get_node = services.get_node

    def waiting(*args: Any) -> Any:
        end = time.monotonic() + _START
        while True:
            try:
                return get_node(*args)
            except RuntimeError:  # it is not there yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    services.get_node = waiting
    try:
        yield
    finally:
        services.get_node = get_node


def join(cluster: Cluster, cpus: int) -> str:
    """One more node; its id. To be called from the main thread."""
    return str(cluster.add_node(num_cpus=cpus, object_store_memory=_STORE_BYTES).node_id)


def lose(cluster: Cluster, node: str) -> None:
    """End a node and all that runs on it in one moment, as when its machine goes.

    Ray's own way ends the node alone; its workers find out up to a second later.
    """
    (host,) = [each for each in cluster.worker_nodes if each.node_id == node]
    own = [psutil.Process(process.pid) for _, process in host.live_processes()]
    for process in [*own, *(child for each in own for child in each.children(recursive=True))]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    cluster.remove_node(host, allow_graceful=False)


def pools() -> dict[str, frozenset[str]]:
    """Ids of the nodes on which each pool lies, by the name of its placement group.

    Those are left out that wait for a place. A node that has gone counts until Ray has noticed.
    """
    return {
        group["name"]: frozenset(group["bundles_to_node_id"].values())
        for group in _groups()
        if group["state"] == "CREATED" and all("CPU" in b for b in group["bundles"].values())
    }


def held() -> list[str]:
    """Actors and placement groups that there still are; [] where studies have let go of all."""
    actors = [
        f"actor {actor['ActorClassName']} {actor['Name']}".rstrip()
        for actor in ray._private.state.actors().values()
        # Ray Train starts one coordinator per cluster, by name, that outlives all trainers.
        if actor["State"] != "DEAD" and actor["Name"] != "AutoscalingCoordinator"
    ]
    return [*actors, *(f"placement group {group['name']}" for group in _groups())]


def _groups() -> list[dict[str, Any]]:
    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
