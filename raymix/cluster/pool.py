"""A pool: one long-lived Ray Train worker group that serves the desk's jobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import worker_group
from ray.util.placement_group import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from raymix.cluster.desk import Desk
from raymix.cluster.resources import Need
from raymix.cluster.session import HEAD
from raymix.cluster.worker import serve
from raymix.core.errors import ClusterError, RaymixError
from raymix.core.job import Json

_log = logging.getLogger(__name__)

_LEAVE_SECONDS = 30.0
_ABORT_SECONDS = 10.0


def open_desk(name: str) -> Any:
    """Start the desk as an actor that lives as long as this driver, on the head node."""
    actor = ray.remote(Desk).options(
        # A sliver of a resource that only the head has: it survives the loss of worker nodes.
        name=name,
        num_cpus=0,
        resources={HEAD: 0.001},
        max_concurrency=1000,
    )
    return actor.remote()


class _Watch(UserCallback):
    """Runs in Train's controller: tells the desk of dead workers, gives a hopeless pool up."""

    def __init__(self, desk: str, pool: str) -> None:
        self._desk = desk
        self._pool = pool

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """The job in flight is delivered again at once, to any free pool."""
        rank, error = sorted(worker_exceptions.items())[0]
        reason = f"worker {rank}: {str(error).strip()[-2000:]}"
        again = ray.get(ray.get_actor(self._desk).crashed.remote(self._pool, reason))
        # What raymix itself says (no such model) would be said again by the next workers.
        if isinstance(error, RaymixError) or not again:
            raise ClusterError(f"its workers cannot start: {reason}")


class _Introduce(ControllerCallback, WorkerGroupCallback):
    """Runs in Train's controller: hands its handle over, the only way to abort a worker group.

    Says when workers wait for room and when they begin to start, for they may hang, or die, before
    they have said a word (`_Watch` hears only of those that have begun to serve). And names its
    placement groups: Ray frees them only when the driver has ended, too, so those of a controller
    that has died must be found (`_free`). Ray Train has no place for the name.
    """

    def __init__(self, desk: str, pool: str) -> None:
        self._desk = desk
        self._pool = pool

    def after_controller_start(self, train_run_context: Any) -> None:
        """Leave the controller's handle at the desk."""
        prefix, number = _prefix(self._desk, self._pool), count()

        def named(bundles: Any, strategy: str, bundle_label_selector: Any) -> Any:
            name = f"{prefix}{next(number)}"
            return placement_group(
                bundles, strategy, name=name, bundle_label_selector=bundle_label_selector
            )

        worker_group.placement_group = named
        me = ray.get_runtime_context().current_actor
        ray.get(ray.get_actor(self._desk).introduce.remote(self._pool, me))

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """There are no workers: room for them is asked for next."""
        ray.get(ray.get_actor(self._desk).waits.remote(self._pool))

    def before_init_train_context(self, workers: Any) -> dict[str, list[Any]]:
        """The workers' processes are there; nothing is to be given to them."""
        ray.get(ray.get_actor(self._desk).starting.remote(self._pool))
        return {}


class _Trainer(TorchTrainer):
    """Without the detached actor that Ray Train starts beside each controller.

    It is to free the placement group of a controller that died, which `_free` does here. Where
    there is no dashboard it cannot ask whether the controller lives and stays for ever: one process
    more on the head for each pool of each driver that was killed.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]


class Pool:
    """One worker group, from `start` to `close`. `failed` hears why it ended, if it broke."""

    def __init__(
        self,
        name: str,
        desk: str,
        need: Need,
        serving: Mapping[str, Json],
        storage: str,
        failed: Callable[[str, Exception], None],
    ) -> None:
        self.name = name
        self._desk = desk
        self._failed = failed
        self._closing = threading.Event()
        self._trainer = _Trainer(
            serve,
            train_loop_config={
                **serving,
                "desk": desk,
                "pool": name,
                "threads": max(1, int(need.cpus)),
            },
            scaling_config=ScalingConfig(
                num_workers=need.workers,
                use_gpu=need.gpus > 0,
                resources_per_worker=_resources(need),
                # On one node where they fit there, else on as few as possible.
                placement_strategy="PACK",
            ),
            run_config=RunConfig(
                name=name,
                storage_path=storage,
                # The desk counts: jobs that kill their workers fail, pools that cannot start end.
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=3),
                callbacks=[_Watch(desk, name), _Introduce(desk, name)],
            ),
        )
        self._thread = threading.Thread(target=self._fit, name=name, daemon=True)

    def start(self) -> None:
        """Start the workers; returns at once."""
        self._thread.start()

    def _fit(self) -> None:
        error: Exception
        try:
            self._trainer.fit()
            error = ClusterError("its workers left")
        except Exception as raised:
            error = raised
        if not self._closing.is_set():
            try:
                # The controller itself may have died.
                _free(_prefix(self._desk, self.name))
            except Exception as raised:
                _log.warning("%s ended, what it held may not be free yet: %s", self.name, raised)
            self._failed(self.name, error)

    def forget(self) -> None:
        """Tell nobody of this pool's end."""
        self._closing.set()

    def close(self, hurry: bool = False) -> None:
        """Wait for the workers to leave a closed desk, then (at once in a `hurry`) end them."""
        self.forget()
        self._thread.join(0 if hurry else _LEAVE_SECONDS)
        if not self._thread.is_alive():
            return
        controller = self._controller()
        if controller is not None:
            controller.abort.remote()
            self._thread.join(_ABORT_SECONDS)
            if self._thread.is_alive():
                # Still waiting for resources, perhaps. The actors that it owns end with it.
                ray.kill(controller)
                self._thread.join(_ABORT_SECONDS)
                _free(_prefix(self._desk, self.name))

    def _controller(self) -> Any:
        try:
            return ray.get(ray.get_actor(self._desk).controller.remote(self.name))
        except (RayActorError, ValueError):
            # No desk: the workers are ending by themselves.
            self._thread.join(_LEAVE_SECONDS)
            return None


def close_all(desk: Any, pools: Sequence[Pool], hurry: bool) -> None:
    """Nobody waits for anybody any more: desk first, then all pools at once."""
    # Without its desk a pool ends by itself.
    with suppress(RayActorError):
        ray.get(desk.close.remote())
    closing = [threading.Thread(target=pool.close, args=(hurry,)) for pool in pools]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join()
    ray.kill(desk)


def _prefix(desk: str, pool: str) -> str:
    """How the names of a pool's placement groups begin."""
    return f"{desk}/{pool}/"


def _free(prefix: str) -> None:
    """Give back the placement groups of these names."""
    for group in placement_group_table().values():
        if group["name"].startswith(prefix) and group["state"] != "REMOVED":
            with suppress(ValueError):  # it went in between
                remove_placement_group(get_placement_group(group["name"]))


def _resources(need: Need) -> dict[str, float]:
    return {"CPU": need.cpus, **({"GPU": need.gpus} if need.gpus else {})}
