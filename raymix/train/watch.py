"""Looks at the norms of a training's gradients, and stops one that has gone to NaN."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raymix.core.errors import TrainingError


@dataclass
class Norms:
    """Norms of the last steps' gradients, on the device; each look at them waits for it.

    `together`: so many are looked at at once. All ranks have the same.
    """

    together: int
    _held: list[Tensor] = field(default_factory=list)

    def add(self, norm: Tensor) -> None:
        """Take in the norm of one step's gradient, before it was clipped."""
        self._held.append(norm)

    def look(self, step: int, lr: float, now: bool = False) -> None:
        """Look at the norms held, those up to `step`, if there are enough or it is to be `now`.

        Raises:
            TrainingError: one is not finite; says at which step.
        """
        if not self._held or not (now or len(self._held) >= self.together):
            return
        norms = torch.stack(self._held).tolist()
        self._held.clear()
        for number, norm in enumerate(norms, start=step - len(norms) + 1):
            if not math.isfinite(norm):
                raise TrainingError(
                    f"the gradient of step {number} is {norm} (learning rate {lr:.3g}); "
                    "lower learning_rate or look for broken rows"
                )
