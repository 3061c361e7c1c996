"""A schedule of mixtures, played back: one learned by MoS, or written by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from raymix.core.errors import ConfigError, MixtureError
from raymix.core.job import Json
from raymix.core.mixture import Mixture, Space
from raymix.core.signals import Decision, Signal, Signals

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Schedule:
    """Samples from each of `points`, `(step, {domain: share})`, after that step of the stage.

    A point at 0 holds from the first step on; before the first point it is the stage's own mixture.
    One point at 0 is a static mixture. Domains left out get 0. What MoS has learned (see
    `learned`), played back on the same data, gives the same training bit for bit.
    """

    points: tuple[tuple[int, Mapping[str, float]], ...]

    def __post_init__(self) -> None:
        """Refuse an empty schedule, steps out of order, and shares that are no mixture."""
        if not self.points:
            raise ConfigError("Schedule.points is empty: give at least one (step, mixture)")
        steps = [step for step, _ in self.points]
        if steps[0] < 0 or any(a >= b for a, b in pairwise(steps)):
            raise ConfigError(f"Schedule.points must have rising steps from 0 on, got {steps}")
        for step, shares in self.points:
            try:
                Mixture.of(shares)
            except MixtureError as error:
                raise ConfigError(f"Schedule.points, step {step}: {error}") from None

    @property
    def every(self) -> int:
        """As seldom as the steps allow."""
        return math.gcd(*(step for step, _ in self.points)) or 1

    @property
    def needs(self) -> frozenset[Signal]:
        """Nothing is measured."""
        return frozenset()

    @property
    def same_step(self) -> bool:
        """No: the sampler moves from the next step on."""
        return False

    @property
    def targets(self) -> tuple[str, ...]:
        """None."""
        return ()

    def init(self, space: Space, steps: int, seed: int) -> tuple[Decision, Json]:
        """The point of step 0, if there is one; the state counts the points that are over.

        Raises:
            MixtureError: a share is outside the bounds, or of no domain of the space. (Epoch caps
                are no matter of one moment: the sampler sees to them.)
        """
        for step, shares in self.points:
            mixture = Mixture.of(shares).ordered(space.names)
            low, high = np.asarray(space.lower), np.asarray(space.upper)
            weights = mixture.array()
            outside = (weights < low - _TOLERANCE) | (weights > high + _TOLERANCE)
            if outside.any():
                name = space.names[int(np.argmax(outside))]
                raise MixtureError(
                    f"the schedule's mixture of step {step} breaks the bounds of '{name}'"
                )
        return self._decided(0, space.names, 0)

    def update(self, state: Json, signals: Signals) -> tuple[Decision, Json]:
        """The newest point that has come, if there is one."""
        return self._decided(state, signals.mixture.names, signals.step)

    def _decided(self, over: int, names: tuple[str, ...], step: int) -> tuple[Decision, Json]:
        come = sum(at <= step for at, _ in self.points)
        if come == over:
            return Decision(), over
        return Decision(sampling=Mixture.of(self.points[come - 1][1]).ordered(names)), come


def learned(diagnostic: Json) -> Schedule:
    """The schedule that a reweighter, such as MoS, has kept in its state.

    Args:
        diagnostic: `{"type": ..., "state": ...}`, what `TrainResult.diagnostics["reweighter"]` has
            of one stage.

    Raises:
        ConfigError: it is of no reweighter, or of one that keeps no schedule.
    """
    state = diagnostic.get("state") if isinstance(diagnostic, Mapping) else None
    points = state.get("schedule") if isinstance(state, Mapping) else None
    if not points:
        name = diagnostic.get("type") if isinstance(diagnostic, Mapping) else diagnostic
        raise ConfigError(f"no schedule was learned by '{name}': only MoS keeps one")
    return Schedule(tuple((int(step), dict(shares)) for step, shares in points))
