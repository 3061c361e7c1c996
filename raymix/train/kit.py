"""What a job is run with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymix.data.store import Table
from raymix.train.config import Setup
from raymix.train.evaluate import HeldOut
from raymix.train.leak import Leak
from raymix.train.model import Model


@dataclass(frozen=True)
class Pace:
    """What suits a device.

    `norms`: so many steps' gradient norms are looked at together (each look waits for the GPU).
    `width`: batches are a multiple of this wide (fewer shapes to compile for, tiles that fit).
    `overhead`: what a pass costs beside its tokens, in tokens (see `measure.passes`).
    """

    norms: int
    width: int
    overhead: int


_CPU = Pace(norms=1, width=1, overhead=256)
_GPU = Pace(norms=50, width=64, overhead=4096)


@dataclass(frozen=True)
class Kit:
    """What a job is run with: the worker keeps it between jobs. Tables are one per domain [K]."""

    setup: Setup
    model: Model
    train: Sequence[Table]
    held: HeldOut
    test: HeldOut | None
    leak: Leak | None = None

    @property
    def pace(self) -> Pace:
        """What suits the device of the model."""
        return _GPU if self.model.world.device.type == "cuda" else _CPU
