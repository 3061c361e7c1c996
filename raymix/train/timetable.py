"""Where a job stands in its stages: the learning rate of the next step, the share spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymix.core.job import Stage
from raymix.train.config import Training
from raymix.train.course import Course
from raymix.train.optim import rate


@dataclass(frozen=True)
class Rates:
    """Learning rates of one step: of weights and adapters, and of the soft prompt."""

    weights: float
    prompt: float


@dataclass(frozen=True)
class Timetable:
    """`steps` are the optimizer steps that each of `stages` is expected to take."""

    training: Training
    stages: Sequence[Stage]
    steps: Sequence[int]

    def rates(self, number: int, progress: float, course: Course) -> Rates:
        """Those of the next step of stage `number`, `progress` of which is spent.

        The schedule is one; a stage's own learning rate is that of its weights. Where there is a
        warm-up its first step has a rate of 0, as in a training of its own; a stage of several that
        takes a single step goes without schedule, or it would train nothing.
        """
        starts = [0, *(i for i in range(1, len(self.stages)) if self.stages[i].restart)]
        first = max(i for i in starts if i <= number)
        last = min((i for i in starts if i > number), default=len(self.stages))
        steps = self.steps[first:last]
        done = sum(self.steps[first:number]) + progress * self.steps[number]
        since = course.step - course.begun[first]
        factor = rate(self.training, done / sum(steps), since, sum(steps))
        if sum(steps) == 1 and len(self.stages) > 1:
            factor = 1.0
        own = self.stages[number].learning_rate
        weights = factor * (self.training.learning_rate if own is None else own)
        return Rates(weights, factor * self.training.prompt_learning_rate)

    def progress(self, number: int, progress: float) -> float:
        """Share of the job's budget spent, 0 to 1, with `progress` of stage `number` spent."""
        done = sum(self.steps[:number]) + progress * self.steps[number]
        return done / sum(self.steps)
