"""The pools of a study while it runs: as many as its nodes hold, and none that hangs."""

from __future__ import annotations

import logging
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from raymix.cluster.config import Cluster
from raymix.cluster.nodes import check_nodes, terms
from raymix.cluster.pool import Pool, close_all, open_desk
from raymix.cluster.resources import Plan, change
from raymix.cluster.session import connected, planned
from raymix.cluster.sharing import Sharing
from raymix.core.codec import encode
from raymix.core.errors import ClusterError
from raymix.train.config import Setup
from raymix.train.tables import described

_log = logging.getLogger(__name__)

_TICK = 1.0
"""Seconds between two looks at nodes and pools."""

START = 600.0
"""Seconds that workers without a job may always take: they import, and find each other."""

_LOST = 3
"""Of pools that hang without a job, or whose controller dies, each third is not replaced."""

_BEATS = 4
"""Signs of life in one time limit, so that a late one is no hang; one in 10 seconds is enough."""


def beat(step_timeout: float | None) -> float:
    """Seconds between two signs of life of a worker group."""
    return min(10.0, (step_timeout or 40.0) / _BEATS)


Make = Callable[[str, Callable[[str, Exception], None]], Pool]
"""Builds the pool of a name, given what to tell of its end."""


@dataclass(frozen=True)
class Ground:
    """A cluster that is made ready for pools: `desk` (of `name`) is open, `scratch` is a folder.

    `look`: to be called now and then, for nodes that come later.
    """

    plan: Plan
    name: str
    desk: Any
    scratch: str
    make: Make
    look: Callable[[], None]


@contextmanager
def ground(cluster: Cluster, setup: Setup, trainer: str) -> Iterator[Ground]:
    """Connect, see whether pools fit and the nodes suit, open a desk.

    Where a node does not see the prepared data, or other nodes may come, they are published.

    Raises:
        ClusterError: the cluster cannot be reached, holds no pool, or a node does not fit.
    """
    setup = described(setup)
    with (
        connected(cluster),
        terms(setup) as asked,
        tempfile.TemporaryDirectory(prefix="raymix-") as scratch,
    ):
        plan = planned(cluster)
        sharing = Sharing(setup)
        if check_nodes(asked, plan.need) or plan.growing:
            sharing.publish()
        name = f"raymix-desk-{uuid.uuid4().hex[:8]}"
        desk = open_desk(name)
        serving = {
            "factory": trainer,
            "setup": encode(setup),
            "terms": encode(asked),
            "beat": beat(cluster.step_timeout),
        }

        def make(pool: str, broke: Callable[[str, Exception], None]) -> Pool:
            return Pool(pool, name, plan.need, serving, scratch, broke)

        yield Ground(plan, name, desk, scratch, make, sharing.look)


class Fleet:
    """Starts pools, ends and replaces them, from a thread of its own; `close` ends them all.

    `make` builds the pool of a name; it is given what to tell of its end. `wanted` says how many
    pools the nodes hold now. `patience`: seconds of silence after which a pool with a job hangs,
    and one without a job where it is more than `START`; None: no limit. `failed` hears of pools
    that broke, which are not started again; `resized` how many more pools there are. Pools that
    are lost by no fault of theirs are replaced, as `_LOST` says.
    """

    def __init__(
        self,
        desk: Any,
        make: Make,
        wanted: Callable[[], int],
        patience: float | None,
        failed: Callable[[str, Exception], None],
        resized: Callable[[int], object],
    ) -> None:
        self._desk = desk
        self._make = make
        self._wanted = wanted
        self._patience = patience
        self._idle = None if patience is None else max(patience, START)
        self._failed = failed
        self._resized = resized
        self._changing = threading.RLock()
        self._pools: dict[str, Pool] = {}
        self._ending: list[threading.Thread] = []
        self._made = 0
        self._broken = 0
        self._lost = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="fleet", daemon=True)

    def start(self, pools: int) -> None:
        """Start `pools` pools, and look after them; returns at once."""
        for _ in range(pools):
            self._add()
        self._thread.start()

    def close(self, hurry: bool) -> None:
        """End all pools and the desk; at once in a `hurry`."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._changing:
            pools = list(self._pools.values())
        close_all(self._desk, pools, hurry)
        for ending in self._ending:
            ending.join()

    def _add(self) -> None:
        with self._changing:
            if self._closing.is_set():
                return
            name = f"pool-{self._made}"
            self._made += 1
            pool = self._pools[name] = self._make(name, self._broke)
            pool.start()

    def _broke(self, name: str, error: Exception) -> None:
        with self._changing:
            if self._pools.pop(name, None) is None:
                return
            # A process of Ray's was killed, which is no fault of the workers.
            replaced = isinstance(error, RayActorError) and self._may_replace()
            if replaced:
                _log.warning("%s ended, another pool takes its place: %s", name, error)
                self._desk.gone.remote(name, str(error))
                self._add()
            else:
                # At once, else its place would be taken for one that another pool may have.
                self._broken += 1
        if not replaced:
            self._failed(name, error)

    def _may_replace(self) -> bool:
        """Count a pool that was lost; whether another one takes its place."""
        with self._changing:
            self._lost += 1
            return self._lost % _LOST != 0

    def _tend(self) -> None:
        while not self._closing.wait(_TICK):
            try:
                self._look()
            except RayActorError:
                return  # the desk has died, and with it the study
            except RayError as error:
                _log.warning("the cluster does not answer, asked again soon: %s", error)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                _log.warning("the pools were not looked after, tried again soon: %s", said)

    def _look(self) -> None:
        """End what hangs, and have as many pools as the nodes hold."""
        seen = ray.get(self._desk.watch.remote(self._patience, self._idle))
        for name, trial in seen["silent"].items():
            self._replace(name, trial)
        with self._changing:
            pools = {name: bool(seen["up"].get(name)) for name in self._pools}
            broken = self._broken
        if not pools:
            return  # the study ends
        # What broke would break again: its place is given up.
        todo = change(self._wanted() - broken, pools)
        for name in todo.end:
            _log.warning("%s ends: the cluster has no room for it any more", name)
            if self._end(name, "its node has gone"):
                self._resized(-1)
        for _ in range(todo.start):
            _log.info("another pool starts: the cluster has room for it")
            self._add()
            self._resized(1)

    def _replace(self, name: str, trial: int | None) -> None:
        if trial is None:
            self._unstick(name)
            return
        reason = (
            f"ended, as no optimizer step or report came for {self._patience:g} s "
            "(cluster.step_timeout)"
        )
        _log.warning("trial %d in %s hangs: %s", trial, name, reason)
        if self._end(name, reason):
            self._add()

    def _unstick(self, name: str) -> None:
        """Replace workers that hang without a job, or give their place up where that is no help."""
        reason = (
            f"its workers did not start, or take a job, for {self._idle:g} s "
            f"(cluster.step_timeout, but no less than {START:g} s)"
        )
        if not self._end(name, reason):
            return
        _log.warning("%s hangs: %s", name, reason)
        if self._may_replace():
            self._add()
        else:
            with self._changing:
                self._broken += 1
            self._failed(name, ClusterError(reason))

    def _end(self, name: str, reason: str) -> bool:
        """Take a pool's job from it and end it, without waiting; whether there was such a pool."""
        with self._changing:
            pool = self._pools.pop(name, None)
        if pool is None:
            return False
        pool.forget()
        ray.get(self._desk.gone.remote(name, reason))
        ending = threading.Thread(target=pool.close, args=(True,), daemon=True)
        ending.start()
        self._ending.append(ending)
        return True
