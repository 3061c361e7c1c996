"""What each worker of a pool does, from the start of the pool to its end."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from raymix.cluster.nodes import check_here
from raymix.core.codec import decode, encode
from raymix.core.errors import ClusterError
from raymix.core.job import Json, Point, TrainJob, TrainResult
from raymix.train.config import Setup
from raymix.train.shard import World, current, leave, together
from raymix.train.tables import fetch_tables

PATIENCE = 20.0
"""Seconds between two words of rank 0 to idle ranks: far below any collective's time limit."""


class Trainer(Protocol):
    """One process of a worker group; see `raymix.train.worker.Worker`."""

    def run(self, job: TrainJob, report: Callable[[Point], bool]) -> TrainResult:
        """Run one training, on every rank; rank 0's `report` says whether to go on."""
        ...


def serve(config: Mapping[str, Json]) -> None:
    """Train job after job until the desk says to leave: a `train_loop_per_worker`.

    `config`: desk (its name), pool, threads, factory (import path of a `Trainer`), setup, terms,
    beat (seconds between two signs of life).
    """
    check_here(config["terms"])
    torch.set_num_threads(config["threads"])
    desk = ray.get_actor(config["desk"])
    pool = config["pool"]
    world = current(ray.train.torch.get_device())
    setup = decode(Setup, config["setup"])
    # Not when a job asks for them: it would seem to hang, and fail where only this node is wrong.
    # Nor does rank 0 arrive, and is given a job, before all have them.
    with together(world):
        fetch_tables(setup, paced(lambda: desk.fetching.remote(pool), config["beat"]))
    trainer = _factory(config["factory"])(setup, world)
    incarnation = ray.get(desk.arrive.remote(pool)) if world.first else 0
    pulse = _Pulse(desk, config["beat"])
    if world.first:
        register_optimizer_step_post_hook(pulse)
    while True:
        word = None
        if world.first:
            word = ray.get(desk.take.remote(pool, incarnation, PATIENCE))
        word = world.told(word)
        if word is None:
            continue
        if "job" not in word:
            break
        job = pulse.job = decode(TrainJob, word["job"])
        result = trainer.run(job, _reporter(desk, job))
        # A rank that has died must not look like a training that failed: the survivors' broken
        # collectives end here, the group is started again and the job delivered again.
        world.barrier()
        pulse.job = None
        if world.first:
            ray.get(desk.finish.remote(job.trial, job.attempt, encode(result)))
    leave(world)


def paced(say: Callable[[], object], every: float) -> Callable[[], None]:
    """Calls `say` at most once in `every` seconds, however often it is called."""
    last = -math.inf

    def call() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            say()

    return call


class _Pulse:
    """Tells the desk of optimizer steps, at most one in `every` seconds; waits for nothing.

    PyTorch calls it after every step of every optimizer in this process.
    """

    def __init__(self, desk: Any, every: float) -> None:
        self.job: TrainJob | None = None
        self._desk = desk
        self._say = paced(self._beat, every)

    def __call__(self, *step: object) -> None:
        if self.job is not None:
            self._say()

    def _beat(self) -> None:
        if self.job is not None:
            self._desk.beat.remote(self.job.trial, self.job.attempt)


def _reporter(desk: Any, job: TrainJob) -> Callable[[Point], bool]:
    def report(point: Point) -> bool:
        return bool(ray.get(desk.push.remote(job.trial, job.attempt, encode(point))))

    return report


def _factory(path: str) -> Callable[[Setup, World], Trainer]:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ClusterError(f"workers cannot import '{path}': {error}") from error
