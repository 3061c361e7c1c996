"""The training loop, read top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import Tensor

from raymix.core.codec import encode, fingerprint
from raymix.core.errors import TrainingError
from raymix.core.job import Json, Point, Spent, Status, TrainJob, TrainResult
from raymix.core.signals import Signal
from raymix.core.simplex import Vector
from raymix.data.batches import Batches, Item
from raymix.data.sampler import Sampler
from raymix.data.store import Table
from raymix.train import checkpoint
from raymix.train.config import Setup
from raymix.train.course import Course, joined
from raymix.train.evaluate import HeldOut, evaluate
from raymix.train.measure import Window, loss_tokens, means, micro
from raymix.train.model import Model
from raymix.train.optim import adamw, clip, moments, rate, set_moments
from raymix.train.pretrained import save, start_from
from raymix.train.rng import random_state, restore_random_state
from raymix.train.shard import together
from raymix.train.steer import Steering

Report = Callable[[Point], bool]

_NORMS_HELD = 50
"""On a GPU so many steps' gradient norms are looked at together: each look waits for the GPU."""


@dataclass(frozen=True)
class Kit:
    """What a job is run with: the worker keeps it between jobs. Tables are one per domain [K]."""

    setup: Setup
    model: Model
    train: Sequence[Table]
    held: HeldOut
    test: HeldOut | None


class Run:
    """One job on its way. Every rank makes the same calls in the same order."""

    def __init__(self, job: TrainJob, kit: Kit, report: Report, course: Course) -> None:
        self.job, self.kit, self.report, self.course = job, kit, report, course
        self.model, self.world, self.training = kit.model, kit.model.world, kit.setup.training
        self.window = Window(len(job.space.names), self.world.device)
        self.norms: list[Tensor] = []
        self.begun = time.monotonic()
        self.folder = Path(kit.setup.output_dir) / "checkpoints" / f"trial-{job.trial}"
        plain = [encode(replace(job, attempt=0)), kit.setup.models[job.model]]
        self.fingerprint = fingerprint(*plain, encode(kit.setup.stores), _what(self.training))

    def run(self) -> TrainResult:
        """Train, evaluate, save; the same result on every rank."""
        saved = self._begin()
        for number in range(self.course.stage, len(self.job.stages)):
            if not self._stage(number, saved):
                return self._result(Status.STOPPED)
            saved = None
        if self.job.stages and self.training.save_steps:
            self._save({})
        self._report(1.0, {}, final=True)
        if self.job.save is not None:
            tokenizer = self.kit.setup.models[self.job.model]
            save(self.model, Path(self.job.save), tokenizer, self.kit.setup.trust_remote_code)
        return self._result(Status.DONE)

    def _begin(self) -> Json | None:
        """Set model, optimizer and seeds; go on from a checkpoint where this trial left one."""
        job = self.job
        self.model.reset(job.seed)
        if job.start is not None:
            start_from(self.model, Path(job.start))
        set_seed((job.seed + self.world.rank) % 2**32)
        self.optimizer = adamw(self.model.parameters, self.training)
        self.model.module.train()
        self.batches = [self._batches(number) for number in range(len(job.stages))]
        self.steps = [expected_steps(batches) for batches in self.batches]
        return self._resume()

    def _batches(self, number: int) -> Batches:
        training, stage = self.training, self.job.stages[number]
        pack = training.max_length if training.packing else None
        sampler = Sampler(self.kit.train, self.job.space, stage, self.job.seed, pack)
        per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
        return Batches(sampler, per_step * self.world.size)

    def _stage(self, number: int, saved: Json | None) -> bool:
        """Spend one stage's budget; False when the report's answer was to stop."""
        job, stage, training = self.job, self.job.stages[number], self.training
        batches, course = self.batches[number], self.course
        steering = Steering(stage.reweighter, job.space, self.world)
        if saved is not None:
            batches.restore(saved["batches"])
            steering.restore(saved["steering"])
        else:
            _steer(batches, steering.start(job.space, self.steps[number], job.seed))
        while True:
            progress = self._progress(number)
            lr = stage.learning_rate or training.learning_rate
            lr *= rate(training, progress, course.step, sum(self.steps))
            mixture = batches.mixture
            items = batches.next_step()
            if not items:
                break
            self._step(items, lr, steering)
            course.count(items, steering.loss_weights or mixture)
            ended = batches.progress >= 1.0
            reports = not ended and _every(training.eval_steps, course.step)
            validation = None
            if reports or (steering.due(course.step) and steering.needs(Signal.VALIDATION_LOSS)):
                validation = evaluate(self.model, self.kit.held)
            if steering.due(course.step):
                _steer(batches, steering.update(course.step, lr, mixture, validation))
            go_on = True
            if reports:
                shares = 
