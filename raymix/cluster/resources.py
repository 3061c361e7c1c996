"""How many pools fit the cluster: pure arithmetic on what its nodes have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymix.cluster.config import Cluster
from raymix.core.errors import ClusterError

_SLACK = 1e-6


@dataclass(frozen=True)
class Need:
    """What one pool holds: `workers` times `cpus` and `gpus`, each worker on one node."""

    workers: int
    cpus: float
    gpus: float

    def fit(self, node: Mapping[str, float]) -> int:
        """How many workers a node with these resources can hold."""
        room = node.get("CPU", 0.0) / self.cpus
        if self.gpus:
            room = min(room, node.get("GPU", 0.0) / self.gpus)
        return math.floor(room + _SLACK)

    def __str__(self) -> str:
        """In words, for errors."""
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} worker(s) with {self.cpus:g} CPU{gpus} each"


@dataclass(frozen=True)
class Plan:
    """The pools of a study. `growing`: some of them wait for nodes that the cluster will add."""

    pools: int
    need: Need
    growing: bool = False


def plan(
    cluster: Cluster,
    nodes: Sequence[Mapping[str, float]],
    most: Mapping[str, float] | None = None,
) -> Plan:
    """Size the pools from the resources of each node; raises ClusterError where none fits.

    `most`: what an autoscaler may bring the cluster to, None without one.
    """
    here = _in_words(nodes)
    gpus = cluster.use_gpu
    if gpus is None:
        gpus = any(node.get("GPU", 0.0) > 0 for node in (*nodes, most or {}))
    need = Need(cluster.num_workers, cluster.cpus_per_worker, cluster.gpus_per_worker * gpus)
    now, later = holds(need, nodes), holds(need, nodes, most)
    if gpus and not any(node.get("GPU", 0.0) > 0 for node in (*nodes, most or {})):
        raise ClusterError(f"cluster.use_gpu is set but there is no GPU; the cluster has {here}")
    if later < (cluster.pools or 1):
        wanted = f"{cluster.pools} pools of " if cluster.pools else ""
        raise ClusterError(
            f"not enough resources: asked for {wanted}{need}; the cluster has {here}. Lower "
            "cluster.num_workers, cluster.pools or cluster.cpus_per_worker, or add machines"
        )
    pools = cluster.pools or later
    return Plan(pools, need, growing=pools > now)


def holds(
    need: Need, nodes: Sequence[Mapping[str, float]], most: Mapping[str, float] | None = None
) -> int:
    """How many pools the nodes hold, or will once an autoscaler has brought `most`."""
    here = sum(need.fit(node) for node in nodes) // need.workers
    return max(here, need.fit(most or {}) // need.workers)


@dataclass(frozen=True)
class Change:
    """What to do about the pools: how many more to `start`, and which to `end`."""

    start: int = 0
    end: tuple[str, ...] = ()


def change(wanted: int, pools: Mapping[str, bool]) -> Change:
    """From the pools that there are to `wanted` ones, one at least.

    `pools`: the names, oldest first, and whether each has workers. Only pools without workers end,
    the newest first: where a node has gone, those that were on it have none and would wait for
    another node, perhaps forever. One pool always stays, to wait for a node that may come back.
    """
    excess = len(pools) - max(1, wanted)
    if excess <= 0:
        return Change(start=-excess)
    down = [name for name, up in pools.items() if not up]
    return Change(end=tuple(reversed(down))[:excess])


def _in_words(nodes: Sequence[Mapping[str, float]]) -> str:
    parts = [f"{n.get('CPU', 0.0):g} CPU, {n.get('GPU', 0.0):g} GPU" for n in nodes]
    return f"{len(parts)} node(s): " + "; ".join(parts) if parts else "no nodes"
