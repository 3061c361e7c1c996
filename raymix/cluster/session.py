"""Ray itself: connect or start, leave as found."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from raymix.cluster.config import Cluster
from raymix.cluster.growth import check_machines, kinds, together
from raymix.cluster.resources import Need, Plan, holds, plan
from raymix.core.errors import ClusterError

HEAD = "node:__internal_head__"
"""A resource that every cluster's head node has: 1.0 of it."""

_ANSWER_SECONDS = 10.0
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of gRPC begins, which is what Ray speaks: HTTP/2's preface and empty settings."""

_SLOW = "timed out during startup"
_STORE_BYTES = 200_000_000
"""Object store of a Ray started here. Data and weights are memory-mapped files, never objects."""

_ENVIRONMENT = {
    # Paths in a study's setup may be relative to the driver's folder.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # How soon the end or the death of a worker is noticed; reports do not go this way.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A worker group prints nothing that belongs on the user's screen.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Tune's files are of no use to us: the study has its own history.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # Tune's newer console output prints headings even when it is told to be silent.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A study never asks for more trials than there are pools.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    # Ctrl-C is ours: Tune's handler would tell the user to resume with Tuner.restore.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Ray for the time of a study: one that runs in this process, the named one, or our own.

    A Ray that this process had started already is used and left running; otherwise the study's
    actors, workers and placement groups end with the connection.
    """
    with environment(_ENVIRONMENT), quiet():
        if ray.is_initialized():
            yield
            return
        address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
        if address.startswith("ray://"):
            raise ClusterError(
                f"cluster.address '{address}': Ray Client is not supported; run on the cluster "
                "itself, for instance with `ray job submit`"
            )
        _answers(address)
        _begin(address)
        try:
            yield
        finally:
            ray.shutdown()


def _begin(address: str) -> None:
    """Connect to Ray, or start it here; on a busy machine that may take a second try.

    Raises:
        ClusterError: it cannot be done.
    """
    own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    for last in (False, True):
        try:
            with _spared(address):
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **(own if address == "local" else {}),
                )
            return
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(f"cannot connect to Ray at '{address}': {error}") from error
        except Exception as error:
            # Ray gives its own processes half a minute, and has no name for what it raises then.
            if last or _SLOW not in str(error):
                raise
            ray.shutdown()


@contextmanager
def _spared(address: str) -> Iterator[None]:
    """Have what Ray starts here ignore SIGHUP, which a terminal that goes sends to all of a group.

    Ray's own processes would die of it while the driver ends its study. What a process ignores, the
    processes that it starts do, too. Only the main thread may say so.
    """
    main = threading.current_thread() is threading.main_thread()
    if address != "local" or not main or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _answers(address: str) -> None:
    """Refuse a `host:port` at which nobody listens, or says a word: Ray would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        with socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS) as line:
            line.sendall(_GREETING)
            line.recv(1)
    except (ConnectionResetError, BrokenPipeError):
        pass  # as with whatever it says, Ray itself knows what to make of it
    except OSError as error:
        raise ClusterError(f"cluster.address '{address}' does not answer: {error}") from error


def suited(plan: Plan) -> Mapping[str, str]:
    """For `environment`: what suits this cluster."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": _patience(len(alive)),
        # A machine on its own is not taken away under its driver: one process less per pool.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if plan.growing or len(alive) > 1 else "0",
    }


def _patience(nodes: int) -> str:
    """Seconds that workers wait for room; a pool is given up when they waited in vain four times.

    An autoscaler needs minutes for a machine, be it only one in the place of one that was lost.
    Machines that are there already may be held by what still ends.
    """
    if kinds():
        return "1800"
    return "300" if nodes > 1 else "60"


def planned(cluster: Cluster) -> Plan:
    """Size the pools for the cluster that this process is connected to."""
    nodes, found = _nodes(), kinds()
    sized = plan(cluster, nodes, together(found))
    check_machines(sized.need, nodes, found)
    return sized


def wanted(cluster: Cluster, need: Need) -> int:
    """How many pools there should be on the nodes that the cluster has now."""
    held = holds(need, _nodes(), together(kinds()))
    return held if cluster.pools is None else min(cluster.pools, held)


def _nodes() -> list[Mapping[str, float]]:
    """What each node that lives has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables that Ray reads at the start of a run, where the user has not."""
    added = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


_LEVELS = {
    # Only what is wrong reaches the screen: the live table replaces Ray's output.
    "ray": logging.ERROR,
    "ray.tune": logging.ERROR,
    "ray.train": logging.ERROR,
    # These two speak of files and of trials that only Tune misses when a study ends early.
    "ray.tune.execution.experiment_state": logging.CRITICAL,
    "ray.tune.tune": logging.CRITICAL,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Give Ray's loggers our levels for the time of a study."""
    before = {name: logging.getLogger(name).level for name in _LEVELS}
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
