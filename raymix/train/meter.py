"""What passes through the model beside the optimizer steps' own tokens."""

from __future__ import annotations

from dataclasses import dataclass

FORWARD = 1
BACKWARD = 2
"""Thirds of a training step that a pass over a token costs; a step is one of each.

The usual count (arXiv:2001.08361): a backward pass makes two products of matrices, by the weights
and by the activations, where the forward pass makes one. One to the activations alone costs 1.
"""


@dataclass
class Meter:
    """Counts in thirds of a token of a training step, so that nothing is rounded on the way.

    Evaluations are not counted. All counts are of all ranks together: every rank counts the same.
    """

    thirds: int = 0

    def looked(self, tokens: int) -> None:
        """`tokens` passed forward only."""
        self.thirds += FORWARD * tokens

    def trained(self, tokens: int) -> None:
        """`tokens` passed forward and back."""
        self.thirds += (FORWARD + BACKWARD) * tokens

    @property
    def tokens(self) -> int:
        """As `core.job.Spent.extra` has it: whole tokens of a training step."""
        return round(self.thirds / 3)
