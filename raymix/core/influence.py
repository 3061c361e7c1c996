"""What workers measured of the domains' influence, and how it is read.

Influence says, to first order, how each eval loss would have ended had a domain had a little more
of the budget. Everything here is NumPy on K domains; the measuring is `raymix.influence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from raymix.core.mixture import Mixture
from raymix.core.simplex import Vector

Matrix = tuple[tuple[float, ...], ...]
"""[K', K]: a row for each eval loss, a column for each domain trained on."""

PROGRESS = "influence/progress"
"""The metric of points that say how far a measurement is, 0 to 1."""

ESTIMATORS = ("ekfac", "kfac", "identity", "adam", "exact")
"""Names of estimators; which of them a measurement holds depends on what was asked."""


@dataclass(frozen=True)
class Influence:
    """One measurement on a trained model.

    With g_j the gradient of domain j's mean training loss, v_i that of eval loss i (both nats per
    token) and P a preconditioner, `estimates[e][i][j]` = -v_i . P g_j: how much eval loss i moves
    for each unit of weight on domain j's mean loss. P is the damped inverse curvature for "ekfac",
    "kfac" and "exact" (nats per token), the identity (dot product of gradients) or Adam's diagonal;
    the last two have a scale of their own.

    Attributes:
        domains: the K domains, of columns and rows alike.
        shares: of the loss tokens trained on, by domain [K]; they sum to 1.
        epochs: how often a row of each domain was seen on average [K].
        estimates: by name of the estimator, [K', K].
        dampings: "ekfac" at other dampings, by the damping in words.
        halves: "ekfac" on two halves of the training and eval rows.
        layers: names of the layers looked at.
        contributions: what each layer adds to "ekfac" [L, K', K].
        slope: d objective / d eval loss i at this model [K'], added by the study; empty before.
        norms: of g_j [K], and `eval_norms` of v_i [K'], over the layers looked at.
        rows: rows of each domain whose gradients were taken [K]; `factor_rows` in the curvature.
        moved: how far training had moved the weights, relative to their norm before it.
        damping: of each layer's mean eigenvalue, in "ekfac".
        fisher: "true" (labels drawn from the model) or "empirical" (the data's own).
        seconds: by phase; `passes`: by phase, in training passes over the same examples.
        notes: what the worker found odd, in words.
    """

    domains: tuple[str, ...]
    shares: tuple[float, ...]
    epochs: tuple[float, ...]
    estimates: Mapping[str, Matrix]
    dampings: Mapping[str, Matrix] = field(default_factory=dict)
    halves: tuple[Matrix, ...] = ()
    layers: tuple[str, ...] = ()
    contributions: tuple[Matrix, ...] = ()
    slope: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    eval_norms: tuple[float, ...] = ()
    rows: tuple[int, ...] = ()
    factor_rows: int = 0
    moved: float = 0.0
    damping: float = 0.1
    fisher: str = "true"
    seconds: Mapping[str, float] = field(default_factory=dict)
    passes: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def effect(self, estimate: Matrix | str = "ekfac", weighted: bool = True) -> Vector:
        """Derivative of eval loss i by beta_j [K', K]; domain j's count becomes (1 + beta_j) times.

        The training loss is the mean over all tokens, so a domain's part in it is its share of
        them: the derivative is `shares[j]` times the estimate. Unweighted (the paper's released
        code), every domain counts as if it were equally large: 1 / K.
        """
        matrix = self.estimates[estimate] if isinstance(estimate, str) else estimate
        found: Vector = np.asarray(matrix, dtype=np.float64)
        parts = self.shares if weighted else (1 / len(self.domains),) * len(self.domains)
        scaled: Vector = found * np.asarray(parts, dtype=np.float64)
        return scaled

    def aggregate(self, effect: Vector) -> Vector:
        """Derivative of the objective by beta_j [K]; without a slope, of the mean eval loss."""
        rows = len(effect)
        slope = np.asarray(self.slope) if self.slope else np.full(rows, 1 / rows)
        found: Vector = slope @ effect
        return found


def centred(effect: Vector, mixture: Mixture) -> Vector:
    """The effect [..., K] where the total is fixed, so that what one gains the others lose.

    Counts c_j (1 + beta_j) are scaled back to the old total: to first order beta_j becomes
    beta_j - sum_i p_i beta_i, p being the shares of the budget, in its unit. The result sums to 0.
    """
    total = effect.sum(axis=-1, keepdims=True)
    found: Vector = effect - total * mixture.array()
    return found


@dataclass(frozen=True)
class Thresholds:
    """When an influence is not to be believed.

    Below a correlation: `damping`, between the estimate at damping .01 and at 1; `halves`, the
    reliability that two halves of the rows give the whole; `dot`, between EK-FAC and the plain dot
    product of gradients (-1: never). Above a number: `epochs`, how often a domain's rows were seen
    (a change of its count is then no change of weight); `moved`, how far training has taken the
    weights from the pretrained, relative to their norm (the last gradient does not stand for so
    long a path).

    Set after the fact on eight regimes of small models, so a start: EK-FAC followed retraining at
    .95 or better where weights had moved by .3 to .6, and at -.04 at .7, from scratch. The dot
    product disagreed with EK-FAC at -.9 to .9 where EK-FAC was right: it is shown, not heeded.
    """

    damping: float = 0.95
    halves: float = 0.9
    dot: float = -1.0
    epochs: float = 20.0
    moved: float = 0.65


@dataclass(frozen=True)
class Consistency:
    """How an estimate agrees with itself: Pearson correlations over domains, NaN where unknown.

    `halves` is stepped up from half the rows to all of them: 2 r / (1 + r) (Spearman, Brown 1910).
    """

    damping: float
    halves: float
    dot: float


def consistency(influence: Influence, mixture: Mixture, fixed: bool = True) -> Consistency:
    """Correlations of the aggregate influence with itself, measured in other ways.

    `mixture`: shares of the budget in its unit; `fixed`: the total is, so influences are centred.
    """

    def view(estimate: Matrix | str) -> Vector:
        found = influence.aggregate(influence.effect(estimate))
        return centred(found, mixture) if fixed else found

    low, high = (influence.dampings.get(name) for name in ("0.01", "1"))
    dampings = correlation(view(low), view(high)) if low and high else np.nan
    halves = influence.halves
    dot = np.nan
    if {"ekfac", "identity"} <= influence.estimates.keys():
        dot = correlation(view("ekfac"), view("identity"))
    half = correlation(view(halves[0]), view(halves[1])) if len(halves) == 2 else np.nan
    return Consistency(
        damping=float(dampings),
        halves=2 * half / (1 + half) if half > 0 else float(half),
        dot=float(dot),
    )


def correlation(a: Sequence[float] | Vector, b: Sequence[float] | Vector) -> float:
    """Pearson's correlation; NaN where one of the two does not vary."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")
