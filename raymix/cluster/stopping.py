"""Early stopping: Ray's ASHA, asked about one point of one trial at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from raymix.cluster.config import EarlyStopping
from raymix.core.job import Point
from raymix.core.trial import Trial

_TIME, _SCORE = "progress", "score"

Score = Callable[[int, Mapping[str, float]], tuple[float, float]]
"""Score and violation of a trial (by number) if it ended with these metrics."""


@dataclass(frozen=True)
class _Known:
    """All that ASHA looks at in a trial of Tune's."""

    trial_id: str


class Asha:
    """Says which trials go on. Its time is the progress through the budget, in percent.

    The rungs are those of the points that trials reported, so they are had again from a history:
    a resumed study stops the trials that an uninterrupted one would have stopped. `earlier`: what
    pending trials reported to a former driver, by trial and step.
    """

    def __init__(
        self,
        settings: EarlyStopping,
        score: Score,
        finished: tuple[Trial, ...] = (),
        earlier: Mapping[int, Mapping[int, Point]] | None = None,
    ) -> None:
        self._score = score
        self._earlier = {number: dict(points) for number, points in (earlier or {}).items()}
        self._stopped: set[int] = set()
        self._scheduler = AsyncHyperBandScheduler(
            time_attr=_TIME,
            metric=_SCORE,
            mode="min",
            max_t=100,
            grace_period=100 * settings.grace,
            reduction_factor=settings.reduction_factor,
        )
        self._added: set[int] = set()
        for trial in finished:
            for point in trial.result.curve if trial.result is not None else ():
                self._hear(trial, point)

    def goes_on(self, trial: Trial, point: Point) -> bool:
        """Whether the trial, having reported `point`, goes on."""
        if trial.number in self._stopped:
            return False
        # What a former driver heard before the checkpoint that the trial now continues from. Later
        # points are reported, and decided about, again.
        for step, old in sorted(self._earlier.pop(trial.number, {}).items()):
            if step < point.step:
                self._hear(trial, old)
        if self._hear(trial, point):
            return True
        self._stopped.add(trial.number)
        return False

    def _hear(self, trial: Trial, point: Point) -> bool:
        score, _ = self._score(trial.number, point.metrics)
        # The last point decides nothing; nor does one without a loss.
        if not trial.stoppable or point.progress >= 1 or not math.isfinite(score):
            return True
        known = _Known(str(trial.number))
        if trial.number not in self._added:
            self._added.add(trial.number)
            self._scheduler.on_trial_add(None, known)
        result = {_TIME: 100 * point.progress, _SCORE: score}
        return bool(self._scheduler.on_trial_result(None, known, result) == TrialScheduler.CONTINUE)
