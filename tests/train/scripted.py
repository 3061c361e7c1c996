"""Reweighters that do as they are told, and note what they hear."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raymix.core.codec import to_spec
from raymix.core.job import Json, TrainJob
from raymix.core.mixture import Mixture, Space
from raymix.core.signals import Decision, Signal, Signals


@dataclass(frozen=True)
class Scripted:
    """Weights are softmax(rate * sum of what was heard of `signal`, a row's mean for a matrix).

    `moves`: sampling, loss_weights, gradient_weights, or nothing. `path`: file for what it hears.
    """

    needs: frozenset[Signal] = frozenset()
    signal: Signal | None = None
    moves: str = "nothing"
    rate: float = 1.0
    every: int = 1
    same_step: bool = False
    targets: tuple[str, ...] = ()
    path: str = ""

    def init(self, space: Space, steps: int, seed: int) -> tuple[Decision, Json]:
        logs = np.where(np.asarray(space.upper) > 0, 0.0, -np.inf)
        return self.decide(space.names, logs), {"logs": logs.tolist(), "heard": []}

    def decide(self, names: tuple[str, ...], logs: np.ndarray) -> Decision:
        if self.moves == "nothing":
            return Decision()
        weights = Mixture.normalised(names, np.exp(logs - logs.max()))
        return Decision(**{self.moves: weights})

    def update(self, state: Json, signals: Signals) -> tuple[Decision, Json]:
        logs = np.array(state["logs"])
        if self.signal is not None:
            values = signals.values[self.signal]
            gains = values if values.ndim == 1 else np.nansum(values, axis=1)
            logs = logs + self.rate * np.where(np.isfinite(gains), gains, 0.0)
        heard = {s.value: v.tolist() for s, v in signals.values.items()}
        heard |= {"step": signals.step, "tokens": signals.tokens.tolist()}
        state = {"logs": logs.tolist(), "heard": [*state["heard"], heard]}
        if self.path:
            Path(self.path).write_text(json.dumps(state["heard"]))
        return self.decide(signals.mixture.names, logs), state


@dataclass(frozen=True)
class Schedule:
    """Sets the mixtures of `steps` in turn, one an update, and then no more."""

    steps: tuple[dict[str, float], ...] = ()
    every: int = 1
    needs: frozenset[Signal] = frozenset()
    same_step: bool = False
    targets: tuple[str, ...] = ()
    moves: str = "sampling"

    def init(self, space: Space, steps: int, seed: int) -> tuple[Decision, Json]:
        return Decision(), 0

    def update(self, state: Json, signals: Signals) -> tuple[Decision, Json]:
        if state >= len(self.steps):
            return Decision(), state
        return Decision(**{self.moves: Mixture.of(self.steps[state])}), state + 1


@dataclass(frozen=True)
class Broken:
    """Gives what is no mixture after the first window, or fails outright."""

    weights: tuple[float, ...] = ()
    moves: str = "sampling"
    every: int = 2
    needs: frozenset[Signal] = frozenset()
    same_step: bool = False
    targets: tuple[str, ...] = ()

    def init(self, space: Space, steps: int, seed: int) -> tuple[Decision, Json]:
        return Decision(), None

    def update(self, state: Json, signals: Signals) -> tuple[Decision, Json]:
        if not self.weights:
            raise ZeroDivisionError("of its own")
        mixture = Mixture(signals.mixture.names, self.weights)
        if self.moves == "both":
            return Decision(loss_weights=mixture, gradient_weights=mixture), None
        return Decision(**{self.moves: mixture}), None


def steered(job: TrainJob, reweighter) -> TrainJob:
    """`job` with `reweighter` in all of its stages."""
    spec = to_spec(reweighter)
    return replace(job, stages=tuple(replace(s, reweighter=spec) for s in job.stages))


def held_out(job: TrainJob, name: str) -> TrainJob:
    """`job` with an upper bound of 0 for one domain and its share given to the others."""
    names = job.space.names
    upper = tuple(0.0 if n == name else 1.0 for n in names)
    space = replace(job.space, upper=upper)

    def spared(mixture: Mixture) -> Mixture:
        return Mixture.normalised(names, mixture.array() * np.asarray(upper))

    stages = tuple(replace(s, mixture=spared(s.mixture)) for s in job.stages)
    return replace(job, space=space, stages=stages)
