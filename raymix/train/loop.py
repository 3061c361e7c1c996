"""The training loop, read top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
from accelerate.utils import set_seed
from upath import UPath

from raymix.core.codec import encode, fingerprint
from raymix.core.errors import TrainingError
from raymix.core.job import Diagnostic, Json, Point, Status, Trainable, TrainJob, TrainResult
from raymix.core.signals import Signal
from raymix.core.simplex import Vector
from raymix.data.batches import Batches, Item, joined, samplers
from raymix.data.stream import earlier
from raymix.storage.place import place, remove
from raymix.train import checkpoint
from raymix.train.course import Course, expected_steps
from raymix.train.diagnose import influence, silent, told
from raymix.train.evaluate import Evaluation, evaluate
from raymix.train.identity import identity, turning
from raymix.train.kept import take_up, tensors
from raymix.train.kit import Kit
from raymix.train.leak import leaks
from raymix.train.measure import Window, means
from raymix.train.meter import Meter
from raymix.train.optim import adamw, recall
from raymix.train.parts import moved
from raymix.train.pretrained import start_from
from raymix.train.reference import TokenLosses
from raymix.train.rng import random_state, restore_random_state
from raymix.train.shard import together
from raymix.train.shelf import Shelf, save, shelf
from raymix.train.steer import Steering
from raymix.train.step import Stepper
from raymix.train.timetable import Rates, Timetable
from raymix.train.use import Use, uses
from raymix.train.watch import Norms

Report = Callable[[Point], bool]

SWAP = "swap"
"""The split that an evaluation the other way round is of: carriers bare, the others with."""

LEARNED = "reweighter"
"""The diagnostic that has, for each stage, the type and the last state of its reweighter."""


class Run:
    """One job on its way. Every rank makes the same calls in the same order."""

    def __init__(self, job: TrainJob, kit: Kit, report: Report) -> None:
        self.job, self.kit, self.report = job, kit, report
        self.model, self.world, self.training = kit.model, kit.model.world, kit.setup.training
        self.begun = time.monotonic()
        self.course = Course(np.zeros(len(job.space.names)))
        self.window = Window(len(job.space.names), self.world.device)
        self.meter = Meter()
        self.batches: list[Batches] = []
        self.mix: dict[str, float] = {}
        self.token_losses: dict[UPath | None, TokenLosses] = {}
        self.shelf: Shelf | None = None
        self.lr = 0.0
        self.diagnostics: dict[str, Json] = {}
        self.norms = Norms(kit.pace.norms)
        self.uses = uses(job, self.training)
        self.parts = moved(job.stages or job.trained, self.training)
        self.folder = place(kit.setup.output_dir) / "checkpoints" / f"trial-{job.trial}"
        self.fingerprint = identity(job, kit.setup)

    def run(self) -> TrainResult:
        """Train, evaluate, save; the same result on every rank."""
        saved = self._begin()
        for number in range(self.course.stage, len(self.job.stages)):
            if not self._stage(number, saved):
                return self.result(Status.STOPPED)
            saved = None
        if self.job.stages and (self.training.save_steps or self.job.keep or self.job.measure):
            self._save()
        self._report(1.0, self._evaluate(), ends=True, final=True)
        if Diagnostic.INFLUENCE in self.job.measure:
            self._influence()
        if self.shelf is not None:
            save(self.model, self.shelf, self.parts)
        return self.result(Status.DONE)

    def _begin(self) -> Json | None:
        """Set model, optimizer and seeds; go on from a checkpoint where this trial left one."""
        job = self.job
        self.model.open(self.parts)
        self.model.reset(job.seed)
        if job.save is not None:
            self.shelf = shelf(place(job.save), self.model, self.kit.setup)
        if job.start is not None:
            start_from(self.model, place(job.start))
        set_seed((job.seed + self.world.rank) % 2**32)
        self.optimizer = adamw(self.model.parameters, self.training)
        if job.trained and job.start is not None:
            recall(self.optimizer, self.model.parameters, place(job.start), self.world)
        self.stepper = Stepper(self.kit, self.optimizer, self.window, self.meter)
        self.model.module.train()
        self.batches = self._plan()
        steps = [expected_steps(batches) for batches in self.batches]
        self.timetable = Timetable(self.training, job.stages, steps)
        return self._resume()

    def _plan(self) -> list[Batches]:
        """The batches of every stage, each after what the earlier ones are expected to draw."""
        job, training = self.job, self.training
        pack = training.max_length if training.packing else None
        per_rank = training.per_device_train_batch_size * training.gradient_accumulation_steps
        each = samplers(self.kit.train, job.space, job.stages, job.seed, pack)
        return [Batches(sampler, per_rank * self.world.size) for sampler in each]

    def _enter(self, number: int, saved: Json | None) -> Steering:
        """Make ready for a stage's next step: its first, or the one after a checkpoint."""
        job, stage, course = self.job, self.job.stages[number], self.course
        batches = self.batches[number]
        if saved is None:
            course.begun.append(course.step)
            if stage.restart:
                self.optimizer.state.clear()
        if number:
            # What the stages before have drawn may differ from what was expected of them.
            batches.sampler.follow(earlier(job.stages, course.drawn, len(job.space.names)))
        self.model.move(moved([stage], self.training))
        self.stepper.use = self.use
        begun, steps = course.begun[number], self.timetable.steps[number]
        steering = Steering(
            stage.reweighter, self.kit, job, batches, begun, steps, self._fixed, self.meter
        )
        if saved is None:
            steering.start()
        else:
            batches.restore(saved["batches"])
            steering.restore(saved["steering"])
        self._show(steering)
        return steering

    def _fixed(self, weights: UPath | None) -> TokenLosses:
        """Losses of train rows under weights that do not move; one for all stages."""
        if weights not in self.token_losses:
            self.token_losses[weights] = TokenLosses(self.kit, self.job, weights, self.meter)
        return self.token_losses[weights]

    def _stage(self, number: int, saved: Json | None) -> bool:
        """Spend one stage's budget; False when the answer to a report was to stop."""
        course, batches = self.course, self.batches[number]
        steering = self._enter(number, saved)
        while True:
            rates = self.timetable.rates(number, batches.progress, course)
            shares = batches.shares
            items = batches.next_step()
            if not items:
                break
            self._step(items, rates, steering)
            course.count(items, shares, steering.weights)
            self.norms.look(course.step, self.lr)
            progress = self.timetable.progress(number, batches.progress)
            # The end of the job has its own report and its own checkpoint.
            reports = progress < 1.0 and _every(self.training.eval_steps, course.step)
            saves = progress < 1.0 and _every(self.training.save_steps, course.step)
            found = self._evaluate() if reports else None
            if steering.due(course.step) and not steering.at_once(course.step):
                self._ask(steering, course.step, found)
            goes_on = not reports or self._report(progress, found, ends=batches.progress >= 1.0)
            if saves or (self.training.save_steps and not goes_on):
                self._save(batches, steering)
            if not goes_on:
                return False
        if not self._boundary(number, steering):
            return False
        course.drawn.append(batches.realised())
        course.stage += 1
        self._learned(steering)
        if self.job.turn and course.stage == 1:
            self._save(folder=self.folder / "turn")
            self.diagnostics["turn"] = course.checkpoint
        return True

    @property
    def number(self) -> int:
        """The stage that is being trained, from 0; the last one when all are."""
        return max(0, min(self.course.stage, len(self.job.stages) - 1))

    @property
    def use(self) -> Use:
        """How rows pass through the model, in training and evaluation, as things stand."""
        return self.uses[min(self.course.stage, len(self.uses) - 1)]

    def _evaluate(self) -> Evaluation:
        """Losses and accuracies on the eval split, as the model is used; a collective call."""
        return evaluate(self.model, self.kit.held, self.use)

    def _step(self, items: list[Item], rates: Rates, steering: Steering) -> None:
        """One optimizer step on `items`, which are those of all ranks."""
        step, stage = self.course.step + 1, self.job.stages[self.number]
        self.lr = rates.prompt if stage.trainable is Trainable.NONE else rates.weights
        decide = partial(self._ask, steering, step) if steering.at_once(step) else None
        self.norms.add(self.stepper.take(items, step, rates, steering, decide))

    def _learned(self, steering: Steering) -> None:
        """Put what the ended stage's reweighter has come to into the result; a collective call."""
        if not any(stage.reweighter for stage in self.job.stages):
            return
        known = self.diagnostics.get(LEARNED, [])
        self.diagnostics[LEARNED] = [*known, steering.learned()]

    def _ask(self, steering: Steering, step: int, found: Evaluation | None = None) -> None:
        """Have the reweighter decide, at optimizer step number `step`; a collective call."""
        # What has gone to NaN is the training's fault; the reweighter would only hand it on.
        self.norms.look(self.course.step, self.lr, now=True)
        if found is None and steering.wants(Signal.VALIDATION_LOSS, step):
            found = self._evaluate()
        steering.update(step, self.lr, None if found is None else found.losses)
        self._show(steering)

    def _show(self, steering: Steering) -> None:
        """Have reports tell the mixture and the weights in force."""
        shares = steering.batches.mixture.array()
        self.mix = _present("mix/{}/share", self.job.space.names, shares) | steering.metrics()

    def _boundary(self, number: int, steering: Steering) -> bool:
        """Report the end of a stage that others follow; False when the answer is to stop."""
        course, batches = self.course, self.batches[number]
        told = bool(course.curve) and course.curve[-1].step == course.step
        if told and self.use.swapped is not None:
            told = any(name.startswith(SWAP) for name in course.curve[-1].metrics)
        if told or number == len(self.job.stages) - 1:
            return True
        ended = self.timetable.progress(number, 1.0)
        if self._report(ended, self._evaluate(), ends=True):
            return True
        if self.training.save_steps:
            self._save(batches, steering)
        return False

    def _report(
        self, progress: float, found: Evaluation | None, ends: bool = False, final: bool = False
    ) -> bool:
        """Report a point, which `ends` a stage or not; False when rank 0 is told to stop.

        A collective call.
        """
        assert found is not None
        self.norms.look(self.course.step, self.lr, now=True)
        names, course = self.job.space.names, self.course
        sums, tokens = self.window.sums(self.world), self.window.tokens
        metrics = found.metrics(names, "eval") | leaks(self.model, self.kit.leak, self.use)
        if tokens.any():
            metrics["train/loss"] = float(sums.sum() / tokens.sum())
            metrics["train/lr"] = self.lr
            metrics |= _present("train/{}/loss", names, means(sums, tokens))
        metrics |= self.mix
        if ends and self.use.swapped is not None:
            other = evaluate(self.model, self.kit.held, self.use.swapped)
            metrics |= other.metrics(names, SWAP)
        if final:
            metrics |= self._verdict()
        self.window.clear()
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(f"{bad[0]} is {metrics[bad[0]]} after step {course.step}")
        point = Point(course.step, progress, metrics, self.number)
        course.curve.append(point)
        return self.world.told(self.report(point) if self.world.first else True)

    def _verdict(self) -> dict[str, float]:
        """What only the last point has: the realised mixture, and the test split where asked."""
        names, metrics = self.job.space.names, {}
        if self.course.drawn:
            drawn = joined(self.course.drawn, [stage.budget.unit for stage in self.job.stages])
            metrics = {f"mix/{part.domain}/realised": part.share for part in drawn}
        if self.kit.test is not None:
            metrics |= evaluate(self.model, self.kit.test, self.use).metrics(names, "test")
        return metrics

    def _influence(self) -> None:
        """Measure the domains' influence on the model as it is; a collective call."""
        kit, job = self.kit, self.job
        shelf = self.folder / f"influence-{fingerprint(self.fingerprint, encode(kit.setup))}"
        found = influence(
            job,
            job.stages or job.trained,
            kit.setup,
            self.model,
            self.optimizer,
            kit.train,
            kit.held,
            shelf,
            told(self.report, self.course.curve[-1]) if self.world.first else silent,
            self.meter,
        )
        self.diagnostics[Diagnostic.INFLUENCE.value] = encode(found)
        if self.world.first:
            with suppress(OSError):
                remove(shelf)

    def _save(
        self,
        batches: Batches | None = None,
        steering: Steering | None = None,
        folder: UPath | None = None,
    ) -> None:
        """Write a checkpoint, between two steps; a collective call."""
        self.norms.look(self.course.step, self.lr, now=True)
        world, folder = self.world, folder or self.folder
        state = {
            "job": self.fingerprint,
            "base": self.model.path,
            "turn": turning(self.job, self.kit.setup),
            "diagnostics": self.diagnostics,
            "course": self.course.state(self._seconds()),
            "extra": self.meter.thirds,
            "charged": self.meter.state(),
            "window": self.window.state(world),
            "lr": self.lr,
            "mix": self.mix,
            "random": world.gathered(random_state(world.device)),
            "batches": batches and batches.state(),
            "steering": steering and steering.state(),
        }
        held = tensors(self.model, self.optimizer)
        with together(world):
            if world.first:
                checkpoint.write(folder, self.course.step, state, held)
        self.course.checkpoint = str(checkpoint.place(folder, self.course.step))

    def _resume(self) -> Json | None:
        """Take up the newest whole checkpoint of this very job; None: there is none."""
        saved, world = take_up(self.folder, self.job, self.kit, self.optimizer), self.world
        if saved is None:
            return None
        self.course = Course.restored(saved["course"])
        if saved["job"] == self.fingerprint:
            self.course.checkpoint = str(checkpoint.place(self.folder, self.course.step))
            self.diagnostics = saved["diagnostics"]
            self.meter.thirds = saved.get("extra", 0)
            self.meter.restore(saved.get("charged", {}))
        else:
            # The shared stage is paid for, but what was learned in it is this job's, too.
            self.diagnostics = {k: v for k, v in saved["diagnostics"].items() if k == LEARNED}
            self.course.branch()
        self.window.restore(saved["window"], world)
        self.lr, self.mix = saved["lr"], saved.get("mix", {})
        if len(saved["random"]) == world.size:
            restore_random_state(saved["random"][world.rank], world.device)
        return saved if saved["batches"] is not None else None

    def _seconds(self) -> float:
        """Wall time that the job has taken, over all deliveries."""
        return self.course.spent.seconds + time.monotonic() - self.begun

    def result(self, status: Status, error: str = "") -> TrainResult:
        """What the job has found so far."""
        course, spent = self.course, self.course.own(self._seconds())
        gpus = self.world.size if self.world.device.type == "cuda" else 0
        units = [stage.budget.unit for stage in self.job.stages]
        drawn = [*course.drawn, *(b.realised() for b in self.batches[course.stage :][:1])]
        return TrainResult(
            status,
            metrics=course.curve[-1].metrics if course.curve else {},
            curve=tuple(course.curve),
            realised=joined(drawn, units) if drawn else (),
            mean_mixture=course.mean_mixture(self.job.space.names),
            diagnostics=self.diagnostics,
            checkpoint=course.checkpoint,
            spent=replace(spent, gpu_seconds=gpus * spent.seconds, extra=self.meter.tokens),
            error=error,
        )


def _every(steps: int | None, step: int) -> bool:
    return steps is not None and step % steps == 0


def _present(name: str, domains: Sequence[str], values: Vector) -> dict[str, float]:
    """Metrics of the domains that have a value."""
    pairs = zip(domains, values.tolist(), strict=True)
    return {name.format(domain): value for domain, value in pairs if not math.isnan(value)}
