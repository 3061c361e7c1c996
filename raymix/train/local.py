"""Trainings in this process: for debugging, tests and small problems."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from raymix.core.job import Report, TrainJob, TrainResult
from raymix.train.config import Setup
from raymix.train.shard import World
from raymix.train.worker import Worker


class LocalRunner:
    """A `core.job.Runner` that trains one job after another, here.

    Each job seeds the global generators of Python, NumPy and torch.
    """

    def __init__(self, setup: Setup, world: World | None = None) -> None:
        self._worker = Worker(setup, world)

    def run(self, jobs: Sequence[TrainJob], report: Report) -> Sequence[TrainResult]:
        """Train `jobs` in turn; a failed one has `Status.FAILED`."""
        return [self._worker.run(job, partial(report, job.trial)) for job in jobs]
