"""The simplex grid: every mixture whose shares are multiples of 1/parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.mixture import Mixture, Space
from raymix.core.simplex import lattice
from raymix.core.trial import History, Idle, Proposal
from raymix.search.seen import key, trained

_MOST = 200_000
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Grid:
    """Proposes every allowed grid point once, in random order, then is done.

    C(parts + K - 1, K - 1) points for K domains, fewer with bounds or epoch caps. The order is
    random because a study that stops early has then covered all of the simplex thinly, and no
    domain is favoured. Points that a baseline has trained are left out.
    """

    parts: int = 4

    def __post_init__(self) -> None:
        """Refuse a grid without steps."""
        if self.parts < 1:
            raise SearchError(f"Grid.parts must be at least 1, got {self.parts}")

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """A random grid point that nothing in the history has trained on."""
        asked = trained(space.names, history)
        left = [point for point in self.points(space) if key(point) not in asked]
        return Proposal(left[int(rng.integers(len(left)))]) if left else Idle.DONE

    def points(self, space: Space) -> tuple[Mixture, ...]:
        """The grid points inside bounds and epoch caps; raises SearchError if there is none."""
        size = len(space.names)
        count = math.comb(self.parts + size - 1, size - 1)
        if count > _MOST:
            raise SearchError(
                f"a grid of 1/{self.parts} over {size} domains has {count} points, more than "
                f"{_MOST}; lower Grid.parts"
            )
        points = lattice(size, self.parts)
        low, high = np.asarray(space.lower), space.ceiling()
        inside = np.all((points >= low - _TOLERANCE) & (points <= high + _TOLERANCE), axis=1)
        if not inside.any():
            raise SearchError(
                f"no multiple of 1/{self.parts} lies within the bounds and epoch caps; raise "
                "Grid.parts"
            )
        return tuple(Mixture.normalised(space.names, point) for point in points[inside])
