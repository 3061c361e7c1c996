"""Trainers that pools can run in place of the real one; Ray's workers import them by path."""

import os
import time
from dataclasses import replace
from pathlib import Path

from raymix.core.errors import ConfigError
from raymix.testing.toy import Toy

TOY = Toy(steps=4, noise=0.02)
LONG = Toy(steps=40, noise=0.02)
DEADLY = 3


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
    """A tenth of a second a step. Leaves its process id and a checkpoint: the last step's number.

    A job delivered again skips the steps that its checkpoint has.
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
        time.sleep(0.1)
        with (self.folder / "log").open("a") as log:
            log.write(f"{job.trial} {job.attempt} {point.step} {os.getpid()}\n")
        go_on = report(point)
        checkpoint.write_text(str(point.step))
        return go_on


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
