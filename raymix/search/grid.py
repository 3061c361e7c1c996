"""The simplex grid: every mixture whose shares are multiples of 1/parts, and every setting."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.mixture import Mixture, Space
from raymix.core.simplex import lattice
from raymix.core.trial import History, Idle, Proposal
from raymix.search.seen import new, trained

_MOST = 200_000
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Grid:
    """Proposes every allowed grid point once, in random order, then is done.

    C(parts + K - 1, K - 1) points for K domains (that may be trained on), fewer with bounds or
    epoch caps; each with every combination of the strategy's parameters: of their values, or of
    parts + 1 points of their range (even, or by the logarithm with `log`). The order is random
    because a study that stops early has then covered all of the simplex thinly, and no
    domain is favoured. Points that a baseline has trained are left out.
    """

    parts: int = 4

    def __post_init__(self) -> None:
        """Refuse a grid without steps."""
        if self.parts < 1:
            raise SearchError(f"Grid.parts must be at least 1, got {self.parts}")

    def propose(self, space: Space, history: History, rng: np.random.Generator) -> Proposal | Idle:
        """A random grid point that nothing in the history has trained on."""
        asked = trained(space, history)
        left = [point for point in self._all(space) if new(space, point, asked)]
        return left[int(rng.integers(len(left)))] if left else Idle.DONE

    def _all(self, space: Space) -> Iterator[Proposal]:
        """Every grid point with every setting of the parameters."""
        for mixture, params in product(self.points(space), settings(space, self.parts + 1)):
            yield Proposal(mixture, params=params)

    def points(self, space: Space) -> tuple[Mixture, ...]:
        """The grid points inside bounds and epoch caps; raises SearchError if there is none."""
        free = space.free()
        size = int(free.sum())
        count = math.comb(self.parts + size - 1, size - 1)
        count *= math.prod(len(each.values) or self.parts + 1 for each in space.params)
        if count > _MOST:
            names = "".join(f" and {each.name}" for each in space.params)
            raise SearchError(
                f"a grid of 1/{self.parts} over {size} domains{names} has {count} points, more "
                f"than {_MOST}; lower Grid.parts"
            )
        shares = lattice(size, self.parts)
        points = np.zeros((len(shares), len(space.names)))
        points[:, free] = shares
        low, high = np.asarray(space.lower), space.ceiling()
        inside = np.all((points >= low - _TOLERANCE) & (points <= high + _TOLERANCE), axis=1)
        if not inside.any():
            raise SearchError(
                f"no multiple of 1/{self.parts} lies within the bounds and epoch caps; raise "
                "Grid.parts"
            )
        return tuple(Mixture.normalised(space.names, point) for point in points[inside])


def settings(space: Space, count: int) -> list[dict[str, float]]:
    """Every combination of the parameters' values, or of `count` points of their ranges.

    One, with nothing in it, where there is no parameter.
    """
    names = [each.name for each in space.params]
    found = product(*(each.points(count) for each in space.params))
    return [dict(zip(names, numbers, strict=True)) for numbers in found]
