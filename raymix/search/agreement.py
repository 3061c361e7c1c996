"""How well estimates of influence agree with retraining: correlations, by estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from raymix.core.errors import SearchError
from raymix.core.influence import Influence, centred, correlation
from raymix.core.simplex import Vector
from raymix.core.trial import Trial
from raymix.search.counts import Total
from raymix.search.measured import effect, influences
from raymix.search.perturb import truth


@dataclass(frozen=True)
class Row:
    """Correlations of one estimate with retraining; NaN where one of the two does not vary.

    `pearson`, `spearman`: over domains, of the influence on the objective. `cells`: Pearson's, over
    all pairs of an eval loss and a domain. `weighted`: by the domains' sizes (`Influence.effect`).
    """

    name: str
    weighted: bool
    pearson: float
    spearman: float
    cells: float


@dataclass(frozen=True)
class Agreement:
    """Influence held against the truth.

    Attributes:
        domains: whose count could be changed [K].
        repeats: how many count [R].
        influence: on the objective [K], by estimator; size-weighted, the mean over repeats.
        truth: the same by retraining [K], and its standard `errors` [K], NaN with one repeat.
        rows: one for each estimator, weighted and not.
        ceiling: half of the repeats against the other half, the mean over all ways to halve them;
            None with one repeat. No estimate can be expected to agree better with the truth.
    """

    domains: tuple[str, ...]
    repeats: int
    influence: Mapping[str, tuple[float, ...]]
    truth: tuple[float, ...]
    errors: tuple[float, ...]
    rows: tuple[Row, ...]
    ceiling: Row | None


def compare(trials: Sequence[Trial], total: Total = "fixed") -> Agreement:
    """Hold the influences measured at the parent against retraining.

    Repeats count whose parent was measured and whose trainings all ended. Under a fixed total
    influences are centred, as the retrained mixtures are.

    Args:
        trials: those that `Perturb` asked for.
        total: `Perturb.total`.

    Raises:
        SearchError: no repeat is whole.
    """
    parents = [t for t in trials if t.proposal.note["kind"] == "parent" and t.finished]
    measured = {t.proposal.repeat: found for t in parents for found in influences([t])}
    if not measured:
        raise SearchError("the influence of no trained parent was measured")
    names = next(iter(measured.values())).domains
    cells = truth([t for t in trials if t.proposal.repeat in measured], names)
    known = np.isfinite(cells)
    # A domain whose count could not be moved has no column in any repeat; one without eval rows
    # has no row.
    rows, columns = known.any(axis=(0, 2)), known.any(axis=(0, 1))
    whole = np.flatnonzero(known[:, rows][:, :, columns].all(axis=(1, 2)))
    if not len(whole) or not columns.any():
        raise SearchError("of no repeat all trainings came to an end")
    kept = [measured[sorted(measured)[place]] for place in whole]
    slopes = np.array([_slope(influence) for influence in kept])[:, rows]
    retrained = _Views(cells[whole][:, rows][:, :, columns], slopes)

    def estimated(name: str, weighted: bool) -> _Views:
        found = np.array([effect(influence, names, name, weighted) for influence in kept])
        if total == "fixed":
            found = centred(found, parents[0].mixture.ordered(names))
        return _Views(found[:, rows][:, :, columns], slopes)

    estimators = [n for n in kept[0].estimates if all(n in i.estimates for i in kept)]
    count = len(kept)
    per_repeat = retrained.objective
    return Agreement(
        domains=tuple(np.array(names)[columns].tolist()),
        repeats=count,
        influence={n: tuple(estimated(n, True).mean.tolist()) for n in estimators},
        truth=tuple(retrained.mean.tolist()),
        errors=tuple((_spread(per_repeat) / np.sqrt(count)).tolist()),
        rows=tuple(
            _row(name, weighted, estimated(name, weighted), retrained)
            for name in estimators
            for weighted in (True, False)
        ),
        ceiling=_ceiling(retrained, count) if count > 1 else None,
    )


def spearman(a: Sequence[float] | Vector, b: Sequence[float] | Vector) -> float:
    """Correlation of ranks, equal numbers sharing theirs; NaN where one of the two is constant."""
    return correlation(_ranks(a), _ranks(b))


def _ranks(values: Sequence[float] | Vector) -> Vector:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Vector = (last - (counts - 1) / 2)[place]
    return ranks


@dataclass(frozen=True)
class _Views:
    """Derivatives of eval losses [R, K', K], with the slope of the objective by those [R, K']."""

    cells: Vector
    slopes: Vector

    @property
    def objective(self) -> Vector:
        """Derivatives of the objective [R, K]."""
        found: Vector = np.einsum("ri,rij->rj", self.slopes, self.cells)
        return found

    @property
    def mean(self) -> Vector:
        """Of the objective, over repeats [K]."""
        found: Vector = self.objective.mean(axis=0)
        return found

    def part(self, repeats: Sequence[int]) -> _Views:
        """The same with some of the repeats."""
        return _Views(self.cells[list(repeats)], self.slopes[list(repeats)])


def _slope(influence: Influence) -> Vector:
    count = len(influence.domains)
    return np.array(influence.slope) if influence.slope else np.full(count, 1.0 / count)


def _spread(values: Vector) -> Vector:
    """Standard deviations over repeats [K] of [R, K]; NaN with one repeat."""
    if len(values) < 2:
        return np.full(values.shape[1], np.nan)
    found: Vector = values.std(axis=0, ddof=1)
    return found


def _row(name: str, weighted: bool, one: _Views, other: _Views) -> Row:
    return Row(
        name,
        weighted,
        correlation(one.mean, other.mean),
        spearman(one.mean, other.mean),
        correlation(one.cells.mean(axis=0).ravel(), other.cells.mean(axis=0).ravel()),
    )


def _ceiling(retrained: _Views, count: int) -> Row:
    rows = []
    for half in combinations(range(count), count // 2):
        rest = [repeat for repeat in range(count) if repeat not in half]
        rows.append(_row("", True, retrained.part(half), retrained.part(rest)))
    return Row(
        "retraining, half against half",
        True,
        float(np.mean([row.pearson for row in rows])),
        float(np.mean([row.spearman for row in rows])),
        float(np.mean([row.cells for row in rows])),
    )
