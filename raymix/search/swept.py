"""One mixture with every setting of the strategy's parameters: the plain sweep of DMT's k."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.mixture import Mixture, Space
from raymix.core.trial import History, Idle, Proposal
from raymix.search.grid import settings
from raymix.search.seen import new, trained


@dataclass(frozen=True)
class Swept:
    """Proposes `mixture` (None: the prior) with every combination of the parameters, once each.

    Of a parameter's values all, in their order; of a range `points` from end to end (even, or by
    the logarithm with `log`). The last parameter changes fastest. Without parameters that is the
    mixture once. What a baseline has trained comes again, so that the sweep has no hole.
    """

    mixture: Mixture | Mapping[str, float] | None = None
    points: int = 5

    def __post_init__(self) -> None:
        """Refuse a sweep without two ends, and shares that are no mixture."""
        if isinstance(self.mixture, Mapping):
            Mixture.of(self.mixture)
        if self.points < 2:
            raise SearchError(f"Swept.points must be at least 2, got {self.points}")

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """The first setting that this method has not asked for.

        A mixture outside the bounds is proposed as it is, for the study to refuse by name.
        """
        given = Mixture.of(self.mixture) if isinstance(self.mixture, Mapping) else self.mixture
        mixture = (
            space.project(space.prior.array()) if given is None else given.ordered(space.names)
        )
        asked = trained(space, history.own)
        for params in settings(space, self.points):
            proposal = Proposal(mixture, params=params)
            if new(space, proposal, asked):
                return proposal
        return Idle.DONE
