"""What passes through the model beside the optimizer steps' own tokens."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raymix.core.job import Json

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
    `had`: which rows [N] of each thing that counts once a row have been counted.
    """

    thirds: int = 0
    had: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def looked(self, tokens: int) -> None:
        """`tokens` passed forward only."""
        self.thirds += FORWARD * tokens

    def looked_once(self, what: str, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """`rows` of a table passed forward; those that `what` had before do not count again.

        Args:
            what: names the table and the weights.
            rows: numbers of rows; one may stand in it twice.
            tokens: of each row of the table [N].
        """
        had = self.had.setdefault(what, np.zeros(len(tokens), dtype=np.bool_))
        new = np.unique(rows[~had[rows]])
        had[new] = True
        self.looked(int(tokens[new].sum()))

    def state(self) -> Json:
        """Which rows have been counted, as JSON: a bit a row, compressed. `thirds` is not in it."""
        bits = {what: np.packbits(had).tobytes() for what, had in self.had.items()}
        return {
            what: [len(self.had[what]), b64encode(zlib.compress(packed)).decode("ascii")]
            for what, packed in bits.items()
        }

    def restore(self, state: Json) -> None:
        """Count no row again that had been counted when `state` was taken."""
        for what, (rows, kept) in state.items():
            packed = np.frombuffer(zlib.decompress(b64decode(kept)), dtype=np.uint8)
            self.had[what] = np.unpackbits(packed, count=rows).astype(np.bool_)

    def trained(self, tokens: int) -> None:
        """`tokens` passed forward and back."""
        self.thirds += (FORWARD + BACKWARD) * tokens

    @property
    def tokens(self) -> int:
        """As `core.job.Spent.extra` has it: whole tokens of a training step."""
        return round(self.thirds / 3)
