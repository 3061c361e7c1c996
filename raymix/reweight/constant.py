"""The reweighter that changes nothing: the ground truth that the others are tested against."""

from __future__ import annotations

from dataclasses import dataclass

from raymix.core.job import Json
from raymix.core.mixture import Space
from raymix.core.signals import Decision, Signal, Signals


@dataclass(frozen=True)
class Constant:
    """Always samples from the current mixture and leaves the loss alone.

    A training with it equals a training without a reweighter, bit for bit.
    """

    every: int = 1
    needs: frozenset[Signal] = frozenset({Signal.DOMAIN_LOSS})
    same_step: bool = False
    targets: tuple[str, ...] = ()

    def init(self, space: Space, steps: int, seed: int) -> tuple[Decision, Json]:
        """No change; the state counts updates."""
        return Decision(), 0

    def update(self, state: Json, signals: Signals) -> tuple[Decision, Json]:
        """The mixture that is already in force."""
        return Decision(sampling=signals.mixture), state + 1
