"""Trainers that pools can run in place of the real one; Ray's workers import them by path."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from raymix.core.errors import ConfigError
from raymix.storage.place import place, write_whole
from raymix.testing.toy import Toy

TOY = Toy(steps=4, noise=0.02)
LONG = Toy(steps=40, noise=0.02)
DEADLY = 3
ONWARD = "onward"
"""The file in a study's folder that says: what was to happen in trial 2 has happened."""


def _await(path):
    """Wait for a file, a minute at the most."""
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)


class ToyTrainer:
    """Computes a closed-form training; rank 0's word counts on every rank."""

    toy = TOY

    def __init__(self, setup, world):
        self.world = world
        self.folder = Path(setup.output_dir)

    def run(self, job, report):
        def heard(trial, point):
            return self.world.told(self.each(job, point, report) if self.world.first else None)

        return self.toy.run([job], heard)[0]

    def each(self, job, point, report):
        return report(point)


class SlowTrainer(ToyTrainer):
    """Leaves its process id and a checkpoint: the last step's number.

    A job delivered again skips the steps that its checkpoint has. A tenth of a second a step, where
    a test has something happen: in the second half of training 3, which does not end before.
    """

    toy = LONG

    def __init__(self, setup, world):
        super().__init__(setup, world)
        (self.folder / f"pid-{os.getpid()}").touch()

    def each(self, job, point, report):
        checkpoint = self.folder / f"checkpoint-{job.trial}"
        done = int(checkpoint.read_text()) if checkpoint.exists() else 0
        if point.step <= done:
            return True
        time.sleep(self.pause(job, point))
        with (self.folder / "log").open("a") as log:
            log.write(f"{job.trial} {job.attempt} {point.step} {os.getpid()}\n")
        go_on = report(point)
        # Whole or not at all: what a test has happen may kill this process at any moment.
        write_whole(checkpoint, str(point.step).encode())
        return go_on

    def pause(self, job, point):
        if (job.trial, job.attempt, point.step) == (3, 0, self.toy.steps):
            return 60.0
        return 0.1 if job.trial == 3 and point.step >= 20 else 0.0


class DeadlyTrainer(ToyTrainer):
    """Trial DEADLY kills its worker, every time."""

    def run(self, job, report):
        if job.trial == DEADLY:
            os._exit(1)
        return super().run(job, report)


class NoTrainer(ToyTrainer):
    """Cannot start."""

    def __init__(self, setup, world):
        raise ConfigError("no such model: 'nowhere'")


class WrongTrainer(ToyTrainer):
    """Every training fails, the worker does not."""

    def run(self, job, report):
        result = super().run(job, report)
        return result if not job.stages else replace(result, status="failed", error="loss is NaN")


BRISK = Toy(steps=10, noise=0.02)


class BriskTrainer(SlowTrainer):
    """As SlowTrainer, each training a second; notes on which node each rank ran.

    Trial 2 waits after its fifth step for what is to happen there, however busy the machine is:
    until `onward` has heard of it, and two seconds more.
    """

    toy = BRISK

    def __init__(self, setup, world):
        import ray

        super().__init__(setup, world)
        node = ray.get_runtime_context().get_node_id()
        with (self.folder / "ranks").open("a") as ranks:
            ranks.write(f"{os.getpid()} {world.rank} {world.size} {node}\n")

    def pause(self, job, point):
        if (job.trial, job.attempt, point.step) != (2, 0, 6):
            return 0.1
        _await(self.folder / ONWARD)
        return 2.0


class BriskDeadlyTrainer(BriskTrainer):
    """Trial DEADLY kills its worker at its fifth step, every time."""

    def each(self, job, point, report):
        if (job.trial, point.step) == (DEADLY, 5):
            os._exit(1)
        return super().each(job, point, report)


HANGING, STOPPED, QUIET = 1, 2, 3


class HangingTrainer(BriskTrainer):
    """The first deliveries of two trials hang; a third trial is long silent, but takes steps."""

    def each(self, job, point, report):
        if (job.trial, job.attempt, point.step) == (HANGING, 0, 5):
            time.sleep(10_000)
        if (job.trial, job.attempt, point.step) == (STOPPED, 0, 5):
            os.kill(os.getpid(), signal.SIGSTOP)
        if job.trial == QUIET and point.step == 5:
            self._steps()
        return super().each(job, point, report)

    def _steps(self):
        import torch

        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight])
        for _ in range(200):
            time.sleep(0.1)
            weight.grad = torch.ones(1)
            optimizer.step()


class StuckTrainer(BriskTrainer):
    """The first worker that there ever is is stopped before it has said a word."""

    def __init__(self, setup, world):
        first = not any(Path(setup.output_dir).glob("pid-*"))
        super().__init__(setup, world)
        if first:
            os.kill(os.getpid(), signal.SIGSTOP)


class HeldTrainer(BriskTrainer):
    """The first delivery of trial 2 stays at its fifth step."""

    def each(self, job, point, report):
        if (job.trial, job.attempt, point.step) == (2, 0, 5):
            time.sleep(10_000)
        return super().each(job, point, report)


class RealTrainer:
    """The real worker; notes its points, and on which node it runs."""

    def __init__(self, setup, world):
        import ray

        from raymix.train.worker import Worker

        self.worker = Worker(setup, world)
        self.folder = Path(setup.output_dir)
        node = ray.get_runtime_context().get_node_id()
        with (self.folder / "ranks").open("a") as ranks:
            ranks.write(f"{os.getpid()} {world.rank} {world.size} {node}\n")

    def run(self, job, report):
        def heard(point):
            with (self.folder / "log").open("a") as log:
                log.write(f"{job.trial} {job.attempt} {point.step} {os.getpid()}\n")
            self.each(job, point)
            return report(point)

        return self.worker.run(job, heard)

    def each(self, job, point):
        pass


class CutTrainer(RealTrainer):
    """In mid-training it once cuts its newest checkpoint short and dies."""

    def each(self, job, point):
        if (job.trial, job.attempt, point.step) == (2, 0, 15):
            newest = sorted((self.folder / "checkpoints" / f"trial-{job.trial}").glob("step-*"))[-1]
            weights = newest / "model.safetensors"
            os.truncate(weights, weights.stat().st_size // 2)
            os._exit(1)


class AwaitingRealTrainer(RealTrainer):
    """The first delivery of trial 2 waits at its fifteenth step for what is to happen."""

    def each(self, job, point):
        if (job.trial, job.attempt, point.step) == (2, 0, 15):
            _await(self.folder / ONWARD)


class HeldRealTrainer(RealTrainer):
    """The first delivery of trial 2 stays at its fifteenth step, whose checkpoint is not there."""

    def each(self, job, point):
        if (job.trial, job.attempt, point.step) == (2, 0, 15):
            time.sleep(10_000)


class StoreTrainer:
    """The real worker; in mid-training it once damages its newest checkpoint and dies.

    What it does lies in an object store, its points, `trial-attempt-step`, too.
    """

    def __init__(self, setup, world):
        from raymix.train.worker import Worker

        self.worker = Worker(setup, world)
        self.home = place(setup.output_dir)

    def run(self, job, report):
        def heard(point):
            write_whole(self.home / "points" / f"{job.trial}-{job.attempt}-{point.step:02d}", b"")
            if (job.trial, job.attempt, point.step) == (2, 0, 15):
                trial = self.home / "checkpoints" / f"trial-{job.trial}"
                newest = max(trial.iterdir(), key=lambda folder: folder.name)
                write_whole(newest / "model.safetensors", b"damaged")
                os._exit(1)
            return report(point)

        return self.worker.run(job, heard)
