"""Runs a reweighter beside a training: rank 0 decides, all ranks hear."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymix.core.codec import from_spec
from raymix.core.errors import TrainingError
from raymix.core.job import Json, Spec
from raymix.core.mixture import Mixture, Space
from raymix.core.signals import Decision, Reweighter, Signal, Signals
from raymix.core.simplex import Vector
from raymix.train.measure import Window, means
from raymix.train.shard import World, together

_MEASURED = frozenset({Signal.DOMAIN_LOSS, Signal.VALIDATION_LOSS})


class Steering:
    """A stage's reweighter (or none) with its state, its window and the loss weights in force.

    `begun`: the job's optimizer steps before the stage; a reweighter counts the stage's own.
    """

    def __init__(self, spec: Spec | None, space: Space, world: World, begun: int = 0) -> None:
        self.reweighter: Reweighter[Any] | None = from_spec(spec) if spec else None
        self.loss_weights: Mixture | None = None
        self._begun = begun
        self.window = Window(len(space.names), world.device)
        self._names, self._world, self._state = space.names, world, None
        if self.reweighter is not None:
            _refuse(self.reweighter)

    def start(self, space: Space, steps: int, seed: int) -> Mixture | None:
        """Ask for the decision of step 0; returns the mixture to sample from, if it says one."""
        if self.reweighter is None:
            return None
        decision = Decision()
        with together(self._world):
            if self._world.first:
                decision, self._state = self.reweighter.init(space, steps, seed)
        return self._heed(decision)

    def due(self, step: int) -> bool:
        """Whether an update follows the job's optimizer step number `step` (the first is 1)."""
        return self.reweighter is not None and (step - self._begun) % self.reweighter.every == 0

    def wants(self, signal: Signal, step: int) -> bool:
        """Whether the reweighter asks for `signal` after optimizer step number `step`."""
        return self.due(step) and self._needs(signal)

    def _needs(self, signal: Signal) -> bool:
        return self.reweighter is not None and signal in self.reweighter.needs

    @property
    def windows(self) -> tuple[Window, ...]:
        """What must be told of each pass: the signals' window, where someone looks at it."""
        return () if self.reweighter is None else (self.window,)

    def update(
        self, step: int, lr: float, mixture: Mixture, validation: Vector | None
    ) -> Mixture | None:
        """Show the window to the reweighter; returns the mixture to sample from, if it says one.

        A collective call.
        """
        assert self.reweighter is not None
        values = {}
        if self._needs(Signal.DOMAIN_LOSS):
            values[Signal.DOMAIN_LOSS] = means(self.window.sums(self._world), self.window.tokens)
        if validation is not None and self._needs(Signal.VALIDATION_LOSS):
            values[Signal.VALIDATION_LOSS] = validation
        signals = Signals(step - self._begun, lr, mixture, self.window.tokens.copy(), values)
        self.window.clear()
        decision = Decision()
        with together(self._world):
            if self._world.first:
                decision, self._state = self.reweighter.update(self._state, signals)
        return self._heed(decision)

    def _heed(self, decision: Decision) -> Mixture | None:
        decision = self._world.told(decision)
        for name in ("gradient_weights", "restore"):
            if getattr(decision, name) is not None:
                raise TrainingError(f"a reweighter decided on {name}, which is not supported yet")
        if decision.loss_weights is not None:
            self.loss_weights = decision.loss_weights.ordered(self._names)
        return decision.sampling

    def scale(self, tokens: Vector) -> NDArray[np.float32]:
        """What one token of each domain counts [K] in a step that has `tokens` [K] of loss.

        Without loss weights the step's loss is the mean over its tokens; with weights w it is
        sum_k w_k * (mean over the tokens of domain k).
        """
        if self.loss_weights is None:
            return np.full(len(tokens), 1.0 / max(1.0, float(tokens.sum())), dtype=np.float32)
        return (self.loss_weights.array() / np.maximum(tokens, 1.0)).astype(np.float32)

    def state(self) -> Json:
        """Plain JSON for the checkpoint; a collective call."""
        return {
            "reweighter": self._state,
            "loss_weights": self.loss_weights and self.loss_weights.as_dict(),
            "window": self.window.state(self._world),
        }

    def restore(self, state: Json) -> None:
        """Go on from `state`."""
        self._state = state["reweighter"]
        weights = state["loss_weights"]
        self.loss_weights = Mixture.of(weights) if weights else None
        self.window.restore(state["window"], self._world)


def _refuse(reweighter: Reweighter[Any]) -> None:
    """Say at the start what this version cannot measure."""
    name = type(reweighter).__name__
    for signal in sorted(reweighter.needs - _MEASURED):
        raise TrainingError(
            f"reweighter {name} needs signal '{signal}', which workers cannot measure yet"
        )
    if reweighter.same_step:
        raise TrainingError(
            f"reweighter {name} decides about the step it has just seen (same_step), which is not "
            "supported yet"
        )
    if reweighter.targets:
        raise TrainingError(
            f"reweighter {name} has target '{reweighter.targets[0]}': domains that are evaluated "
            "but not trained on are not supported yet"
        )
    if reweighter.every < 1:
        raise TrainingError(f"{name}.every must be at least 1, got {reweighter.every}")
