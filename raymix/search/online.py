"""One training with a reweighter in it, and no proxy: how MoS is run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.job import Spec
from raymix.core.mixture import Space
from raymix.core.trial import History, Idle, Proposal
from raymix.search.counts import Start, check_start, starting
from raymix.search.nested import compares, reweighter_of


@dataclass(frozen=True)
class Online:
    """Trains once, from `start` (None: the prior), while `reweighter` moves the mixture.

    The training that learns the mixture is the one that is scored. `repeats`: with so many seeds,
    `first` and those after it, so that methods of one study can have seeds of their own.
    """

    reweighter: Spec
    start: Start | None = None
    repeats: int = 1
    first: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing, and a reweighter that a reference must teach."""
        made = reweighter_of(self.reweighter, "Online.reweighter")
        if compares(made):
            raise SearchError(
                f"Online: {type(made).__name__} needs the losses of a reference model; use Proxy, "
                "which trains one"
            )
        if self.repeats < 1 or self.first < 0:
            raise SearchError(
                f"Online.repeats must be at least 1 and first at least 0, got {self.repeats} and "
                f"{self.first}"
            )
        check_start(self.start, "Online.start")

    @property
    def most(self) -> int:
        """The most trainings that it asks for."""
        return self.repeats

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The next repeat; nothing waits for anything."""
        asked = len(history.own)
        if asked >= self.repeats:
            return Idle.DONE
        repeat = self.first + asked
        note = {"kind": "online", "repeat": repeat}
        return Proposal(
            starting(space, self.start), reweighter=self.reweighter, note=note, repeat=repeat
        )
