"""One step of IDEAL: from a trained mixture and its domains' influence to another mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from raymix.core.forecast import Forecast
from raymix.core.influence import Influence, centred
from raymix.core.mixture import Budget, Mixture, Space
from raymix.core.simplex import Vector
from raymix.core.trial import Trial
from raymix.search.counts import Total, betas, changes, counts_of, rescaled
from raymix.search.measured import effect, on_objective
from raymix.search.seen import key

Key = tuple[tuple[float, ...], int]

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Place:
    """Where a search stands: the finished repeats of one mixture, and the influences there."""

    trials: tuple[Trial, ...]
    influences: tuple[Influence, ...]

    def direction(self, space: Space, estimator: str, weighted: bool, total: Total) -> Vector:
        """Influence of each domain on the objective [K], the mean over repeats.

        Centred under a fixed total, where what one domain gains the others lose. A domain that a
        bound or cap holds back takes no part in that, and counts no more than the largest of the
        others: its own might be far larger and set their scale, though it leads nowhere.
        """
        every = [on_objective(i, space.names, estimator, weighted) for i in self.influences]
        mean: Vector = np.mean(every, axis=0)
        mixture = self.trials[0].mixture.ordered(space.names)
        counts = counts_of(space, self.trials[0].proposal)
        within = replace(space, budget=self.trials[0].proposal.budget or space.budget)
        found = centred(mean, mixture) if total == "fixed" else mean
        slack = _TOLERANCE * counts.sum()
        full = (counts >= within.ceiling() * counts.sum() - slack) & (found < 0)
        least = (counts <= np.asarray(space.lower) * counts.sum() + slack) & (found > 0)
        free = ~(full | least)
        if not counts[free].any():
            return np.zeros_like(found)
        if total == "fixed":
            found = found - mixture.array() * found[free].sum() / mixture.array()[free].sum()
        return np.where(free, found, np.sign(found) * np.abs(found[free]).max())

    def forecast(self, space: Space, estimator: str, counts: Vector, repeat: int) -> Forecast:
        """What the influence predicts of training on `counts` [K], for the trial of a repeat.

        The change of eval loss i is the sum over j of its size-weighted effect times the relative
        change of domain j's count: to first order right for a fixed total and for a free one.
        """
        effects = np.mean([effect(i, space.names, estimator) for i in self.influences], axis=0)
        moved = changes(counts_of(space, self.trials[0].proposal), counts)
        names = self.influences[0].domains
        same = (t for t in self.trials if t.proposal.repeat == repeat)
        parent = next(same, self.trials[0])
        metrics: Mapping[str, float] = parent.result.metrics if parent.result else {}
        known = {name: f"eval/{name}/loss" for name in names if f"eval/{name}/loss" in metrics}
        return Forecast(
            parent.number,
            dict(zip(names, (effects @ moved).tolist(), strict=True)),
            {name: metrics[metric] for name, metric in known.items()},
        )


@dataclass(frozen=True)
class Target:
    """A mixture that a step leads to.

    `width` is the step's, in steps; `beta` by domain: the change of the counts that was wanted,
    before bounds, caps and the total. `mixture` and `budget` are allowed.
    """

    width: float
    beta: Vector
    mixture: Mixture
    budget: Budget

    @property
    def counts(self) -> Vector:
        """What is drawn of each domain [K], in the budget's unit."""
        found: Vector = self.mixture.array() * self.budget.amount
        return found

    @property
    def key(self) -> Key:
        """Equal for targets that are the same training."""
        return key(self.mixture), self.budget.amount


def target(
    space: Space, counts: Vector, influence: Vector, step: float, width: float, total: Total
) -> Target:
    """Where a step of `width` times `step` leads from `counts` [K], against `influence` [K]."""
    beta = betas(influence, step * width)
    return Target(width, beta, *rescaled(space, counts, beta, total))
