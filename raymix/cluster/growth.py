"""What an autoscaler may still bring: the cluster's own description, read where the driver is.

Ray's autoscaler tells nobody what it may add: a study that starts on a cluster that has scaled down
to its head would find no room. But its description lies on the head node (`ray up`), or is an
object that the head's pod may read (KubeRay).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import ray
import yaml

from raymix.cluster.resources import Need
from raymix.core.errors import ClusterError
from raymix.core.job import Json

Kind = tuple[Mapping[str, float], int]
"""What a machine has, by resource, and how many of this kind there may be."""

_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the description on the head."""

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_UNLIMITED = 1_000
"""Stands for "as many as are wanted"."""

_log = logging.getLogger(__name__)


def kinds() -> tuple[Kind, ...]:
    """The machines that an autoscaler may add; () without one."""
    # Private, but the only way to ask; Ray Train asks in the same way. Not all autoscalers answer.
    told = ray._private.state.state.get_cluster_config()
    if told is not None and told.node_group_configs:
        groups = [(dict(g.resources), g.max_count) for g in told.node_group_configs]
        return tuple((r, n if n >= 0 else _UNLIMITED) for r, n in groups if r and n)
    return _described()


@cache
def _described() -> tuple[Kind, ...]:
    described = _kuberay() or _bootstrap()
    return kinds_of(described) if described else ()


def kinds_of(described: Mapping[str, Json]) -> tuple[Kind, ...]:
    """The machines in an autoscaler's configuration, as `ray up` completes it."""
    most = described.get("max_workers", _UNLIMITED)
    return tuple(
        (kind["resources"], min(kind.get("max_workers", 0), most))
        for kind in described.get("available_node_types", {}).values()
        if kind.get("resources") and kind.get("max_workers")
    )


def together(found: Sequence[Kind]) -> Mapping[str, float] | None:
    """What all machines have that may come; None where none may."""
    if not found:
        return None
    names = {name for resources, _ in found for name in resources}
    return {name: sum(r.get(name, 0.0) * count for r, count in found) for name in names}


def check_machines(need: Need, nodes: Sequence[Mapping[str, float]], found: Sequence[Kind]) -> None:
    """Refuse a worker that all machines could hold together but none of them alone.

    Raises:
        ClusterError: says what a machine has at the most.
    """
    machines = [*nodes, *(resources for resources, _ in found)]
    if not any(need.fit(machine) for machine in machines):
        sizes = {f"{m.get('CPU', 0):g} CPU and {m.get('GPU', 0):g} GPU" for m in machines}
        raise ClusterError(
            f"not enough resources: asked for {need}, but no machine holds one; machines that are "
            f"there or may be added have {', '.join(sorted(sizes))}. Lower cluster.cpus_per_worker "
            "or cluster.gpus_per_worker, or describe larger machines"
        )


def _bootstrap() -> Json:
    path = _BOOTSTRAP.expanduser()
    try:
        return yaml.safe_load(path.read_text("utf-8")) if path.is_file() else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        _log.warning("cannot read what the autoscaler may add from %s: %s", path, error)
        return None


def _kuberay() -> Json:
    """The RayCluster that this pod belongs to, which its head may read; None elsewhere."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not _ACCOUNT.is_file():
        return None
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    try:
        client = node_provider.KubernetesHttpApiClient(_ACCOUNT.read_text("utf-8").strip())
        found = client.get(f"rayclusters/{name}")
        if not found["spec"].get("enableInTreeAutoscaling"):
            return None
        return autoscaling_config._derive_autoscaling_config_from_ray_cr(found)
    except Exception as error:  # of HTTP, of TLS, of the description
        _log.warning("cannot ask Kubernetes what the autoscaler may add: %s", error)
        return None
