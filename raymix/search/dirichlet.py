"""Random search: mixtures drawn from a Dirichlet distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.mixture import Space
from raymix.core.simplex import Vector
from raymix.core.trial import History, Idle, Proposal
from raymix.search.seen import new, trained

_DRAWS = 1000
_TRIES = 50
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Dirichlet:
    """Independent draws from Dirichlet(strength * K * centre), K being the number of domains.

    `centre`: "uniform", "proportional" or "prior" (the experiment's). `strength` 1 around uniform
    is the uniform distribution over all mixtures; larger values stay nearer to the centre, smaller
    ones go to the corners. Draws outside bounds and epoch caps are thrown away; where nearly all
    are (tight caps), the nearest allowed mixture to a draw is taken instead. Domains that may have
    nothing are not among the K. Parameters of the strategy are drawn evenly over their values or
    range (its logarithm with `log`), whatever the mixture.
    """

    centre: Literal["uniform", "proportional", "prior"] = "uniform"
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a centre or strength that means nothing."""
        if self.centre not in ("uniform", "proportional", "prior"):
            raise SearchError(
                f"Dirichlet.centre must be uniform, proportional or prior, got '{self.centre}'"
            )
        if not 0 < self.strength < float("inf"):
            raise SearchError(f"Dirichlet.strength must be positive, got {self.strength}")

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """A draw that nothing in the history has trained on; DONE where none of many is new."""
        free = space.free()
        draws = np.zeros((_DRAWS, len(space.names)))
        draws[:, free] = rng.dirichlet(self._alpha(space)[free], _DRAWS)
        parts = rng.random((_TRIES, len(space.params)))
        low, high = np.asarray(space.lower), space.ceiling()
        allowed = np.all((draws >= low - _TOLERANCE) & (draws <= high + _TOLERANCE), axis=1)
        asked = trained(space, history)
        # Allowed draws first, each group in its order: the first new one is taken.
        ordered = np.concatenate([draws[allowed], draws[~allowed]])
        for draw, part in zip(ordered, parts.tolist(), strict=False):
            pairs = zip(space.params, part, strict=True)
            params = {each.name: each.at(place) for each, place in pairs}
            proposal = Proposal(space.project(draw), params=params)
            if new(space, proposal, asked):
                return proposal
        return Idle.DONE

    def _alpha(self, space: Space) -> Vector:
        """Concentrations [K]; a share of 0 in the centre stays as good as 0."""
        size = int(space.free().sum())
        centres = {
            "uniform": space.uniform(),
            "proportional": space.proportional(),
            "prior": space.prior,
        }
        alpha: Vector = self.strength * size * centres[self.centre].array()
        return np.maximum(alpha, 1e-6)
