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

    The training that learns the mixture is the one that is scored.
    """

    reweighter: Spec
    start: Start | None = None

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing, and a reweighter that a reference must teach."""
        made = reweighter_of(self.reweighter, "Online.reweighter")
        if compares(made):
            raise SearchError(
                f"Online: {type(made).__name__} needs the losses of a reference model; use Proxy, "
                "which trains one"
            )
        check_start(self.start, "Online.start")

    @property
    def most(self) -> int:
        """The most trainings that it asks for."""
        return 1

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The training, unless it was asked for; nothing waits for anything."""
        if history.own:
            return Idle.DONE
        note = {"kind": "online"}
        return Proposal(starting(space, self.start), reweighter=self.reweighter, note=note)
