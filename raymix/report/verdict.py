"""Is the winner better than the baselines, or is that the noise of training?

Scores y[m, s] of mixture m under seed s follow the additive model mixture + seed + noise: equal
seeds draw nearly the same rows in nearly the same order, so a seed is a block. The variance of the
noise is pooled over all mixtures, with (M-1)(S-1) degrees of freedom when no training is missing
(least squares in general). Tests are two-sided t tests with Holm's correction. They lean on the
noise being the same for all mixtures, so that is checked too (Cochran's largest share of variance):
a mixture that is noisier than the others is tested with its own variance and S-1 degrees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from raymix.core.simplex import Vector
from raymix.report.facts import Repeats
from raymix.report.guards import told

LEVEL = 0.05
"""Probability, over all comparisons together, of calling pure noise a difference."""

POWER = 0.8

_DRAWS = 2000

REFERENCES = ("proportional", "uniform")


@dataclass(frozen=True)
class Comparison:
    """A mixture against a baseline: `difference` < 0 says that the mixture is better.

    In nats per token. `low` to `high` is the interval that holds the truth in 95% of studies, for
    all comparisons of the study at once (Bonferroni). `p` is corrected by Holm's method.
    """

    name: str
    baseline: str
    difference: float
    low: float
    high: float
    p: float

    @property
    def word(self) -> str:
        """Better, worse or not distinguishable."""
        if not self.p < LEVEL:
            return "not distinguishable"
        return "better" if self.difference < 0 else "worse"


@dataclass(frozen=True)
class Verdict:
    """What the confirmations say, in nats per token; NaN where nothing can be told.

    `noise`: standard deviation of one training. `detectable`: the least true difference that a
    study like this one finds in 4 of 5 cases, of mixtures that are not noisier than the others.
    """

    split: str
    comparisons: tuple[Comparison, ...]
    noise: float
    freedom: int
    detectable: float
    sentence: str


@dataclass(frozen=True)
class Fit:
    """The additive model fitted to scores [M, S]: effects [M] of the mixtures, noise variance.

    `covariance` [M, M] of the effects is in units of the variance; only differences of effects
    mean something.
    """

    effects: Vector
    variance: float
    freedom: int
    covariance: Vector

    def error(self, a: int, b: int) -> float:
        """Standard error of the difference between two mixtures."""
        c = self.covariance
        return math.sqrt(max(0.0, self.variance * float(c[a, a] + c[b, b] - 2 * c[a, b])))


def fit(scores: Vector) -> Fit | None:
    """Least squares of mixture + seed effects; None when no degree of freedom is left for noise."""
    methods, seeds = scores.shape
    rows, columns = np.nonzero(np.isfinite(scores))
    design = np.zeros((len(rows), methods + seeds - 1))
    design[np.arange(len(rows)), rows] = 1.0
    later = columns > 0
    design[np.nonzero(later)[0], methods + columns[later] - 1] = 1.0
    rank = int(np.linalg.matrix_rank(design))
    freedom = len(rows) - rank
    # With a lower rank the table falls apart into groups that share no seed.
    if rank < methods + seeds - 1 or freedom < 1:
        return None
    inverse = np.linalg.pinv(design.T @ design)
    values = scores[rows, columns]
    effects = inverse @ design.T @ values
    rest = values - design @ effects
    # What float rounding leaves of an exact fit is no noise.
    variance = float(rest @ rest) / freedom
    if variance < (1e-12 * float(np.abs(values).max())) ** 2:
        variance = 0.0
    return Fit(effects[:methods], variance, freedom, inverse[:methods, :methods])


def holm(p: Sequence[float]) -> tuple[float, ...]:
    """Holm's corrected p values (Scandinavian Journal of Statistics 6, 1979)."""
    found = [0.0] * len(p)
    worst = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        found[i] = worst
    return tuple(found)


def verdict(table: Repeats | None) -> Verdict:
    """Compare every confirmed mixture with proportional and uniform."""
    if table is None:
        return _silent("eval", "Cannot tell: no mixture was confirmed with fresh seeds.")
    found = _compared(table)
    guards = told(table.guards, table.names[table.best])
    return replace(found, sentence=found.sentence + guards + _missing(table))


def _missing(table: Repeats) -> str:
    """What took part and has no row, or not all of one."""
    if not table.missing:
        return ""
    return f" Missing: {'; '.join(table.missing)}."


def _compared(table: Repeats) -> Verdict:
    pairs = _pairs(table)
    if not pairs:
        return _silent(table.split, "Cannot tell: there is nothing to compare with a baseline.")
    fitted = fit(table.scores)
    if fitted is None and not _joined(table.scores):
        return _silent(
            table.split,
            "Cannot tell: the mixtures share no seeds, all or some of them, so a difference may be "
            "that of the seeds; confirm them with the same ones.",
        )
    if fitted is None:
        return _silent(
            table.split,
            f"Cannot tell: {_seeds(table)} per mixture leaves nothing to measure the noise with; "
            "confirm with at least 2 (search.confirm.seeds).",
        )
    return _tested(table, pairs, fitted)


def _joined(scores: Vector) -> bool:
    """Whether shared seeds lead from every mixture to every other one, maybe by way of others."""
    there = np.isfinite(scores)
    rows = np.arange(len(there)) == 0
    for _ in range(len(there)):
        rows = rows | (there & there[rows].any(axis=0)).any(axis=1)
    return bool(rows.all())


def _pairs(table: Repeats) -> list[tuple[int, int]]:
    """Rows of mixture and baseline; two names for one mixture are one comparison."""
    bases = [table.baselines[name] for name in REFERENCES if name in table.baselines]
    rows = [row for row in range(len(table.names)) if row not in bases]
    return [(row, base) for base in dict.fromkeys(bases) for row in rows]


def _tested(table: Repeats, pairs: list[tuple[int, int]], fitted: Fit) -> Verdict:
    from scipy import stats

    loud = noisiest(table.scores) if fitted.variance > 0 else None
    differences = [float(fitted.effects[row] - fitted.effects[base]) for row, base in pairs]
    degrees = [len(table.seeds) - 1 if loud in pair else fitted.freedom for pair in pairs]
    errors = [_error(table.scores, fitted, pair, loud) for pair in pairs]
    raw = [
        float(2 * stats.t.sf(abs(d) / se, df)) if se > 0 else float(abs(d) < 1e-9)
        for d, se, df in zip(differences, errors, degrees, strict=True)
    ]
    # Bonferroni for intervals and planning: simple, and never more lenient than Holm.
    quantile = 1 - LEVEL / (2 * len(pairs))
    widths = [float(stats.t.ppf(quantile, df)) * se for se, df in zip(errors, degrees, strict=True)]
    names = table.names
    comparisons = tuple(
        Comparison(names[row], names[base], d, d - width, d + width, p)
        for (row, base), d, width, p in zip(pairs, differences, widths, holm(raw), strict=True)
    )
    least = [_needed(quantile, df) * se for se, df in zip(errors, degrees, strict=True)]
    usual = [found for found, pair in zip(least, pairs, strict=True) if loud not in pair]
    detectable = max(usual or least)
    shown = _shown(table, comparisons)
    own = [found for found, c in zip(least, comparisons, strict=True) if c in shown]
    return Verdict(
        split=table.split,
        comparisons=comparisons,
        noise=math.sqrt(fitted.variance),
        freedom=fitted.freedom,
        detectable=detectable,
        sentence=_sentence(table, shown, max(detectable, *own), _better(table, fitted))
        + _caution(table, loud),
    )


def _error(scores: Vector, fitted: Fit, pair: tuple[int, int], loud: int | None) -> float:
    """Standard error of the difference of two rows, `loud` with the larger variance of its own.

    Its own is its residual sum of squares in a table [M, S] over (S-1)(M-1)/M, which is what it
    comes to on average where the noise is equal.
    """
    pooled = fitted.error(*pair)
    if loud is None or loud not in pair:
        return pooled
    methods, seeds = scores.shape
    squares = float(_residual_squares(scores[None])[0, loud])
    own = squares / ((seeds - 1) * (methods - 1) / methods)
    # Nothing is missing where a row is called loud, so that each has half of the pooled error.
    return pooled * math.sqrt((1 + max(1.0, own / fitted.variance)) / 2)


@lru_cache(maxsize=64)
def _needed(quantile: float, freedom: int) -> float:
    """The true difference, in standard errors, that a t test finds with probability `POWER`."""
    from scipy import optimize, stats

    critical = float(stats.t.ppf(quantile, freedom))
    return float(
        optimize.brentq(
            lambda shift: stats.nct.sf(critical, freedom, shift) - POWER, 0.0, 20 * critical
        )
    )


def _shown(table: Repeats, comparisons: tuple[Comparison, ...]) -> list[Comparison]:
    """What the sentence tells of: the best mixture, or where that is a baseline the nearest other.

    The nearest among those that competed, if any did.
    """
    best = table.names[table.best]
    if not any(c.name == best for c in comparisons):
        out = {table.names[row] for row in table.aside}
        near = [c for c in comparisons if c.name not in out] or comparisons
        best = min(near, key=lambda c: c.difference).name
    return [c for c in comparisons if c.name == best]


def _better(table: Repeats, fitted: Fit) -> dict[str, str]:
    """Rows with lower losses than the best that did not compete, and why."""
    effects = fitted.effects
    return {
        table.names[row]: why
        for row, why in table.aside.items()
        if effects[row] < effects[table.best]
    }


def _sentence(
    table: Repeats, own: Sequence[Comparison], detectable: float, better: Mapping[str, str]
) -> str:
    best, name = table.names[table.best], own[0].name
    said = ""
    if name != best:
        most = "mixture that competed" if better else "mixture found"
        said = f"The baseline {best} is the best {most}; the nearest other one, "
    said += f"{name} is {' and '.join(_phrase(c) for c in own)}"
    said += f" ({table.split} losses, {_seeds(table)}; least detectable: {detectable:.3g})."
    for other, why in better.items():
        said += f" {other} has lower losses than {best}, but did not compete: {why}."
    if table.split == "eval":
        said += " Eval also guided the search, so this flatters the winner; add a test split."
    return said


def _caution(table: Repeats, loud: int | None) -> str:
    """A warning where one mixture is noisier than the pooled noise says, else nothing."""
    if loud is None:
        return ""
    return (
        f" {table.names[loud]} varies more than the others: it is tested with its own noise, and "
        "the pooled noise is too large for them, so confirm with more seeds."
    )


def noisiest(scores: Vector) -> int | None:
    """The row that has too large a part of the residual variance for equal noise, None if none.

    Cochran's statistic for scores [M, S] with seeds as blocks; its law at the level `LEVEL` is
    simulated (with a fixed seed), as tables do not know of blocks. Needs M >= 3, nothing missing.
    """
    if len(scores) < 3 or scores.shape[1] < 2 or not np.all(np.isfinite(scores)):
        return None
    own = _residual_shares(scores[None])[0]
    row = int(np.argmax(own))
    return row if own[row] > _largest_share(*scores.shape) else None


@lru_cache(maxsize=64)
def _largest_share(methods: int, seeds: int) -> float:
    draws = np.random.default_rng(0).normal(size=(_DRAWS, methods, seeds))
    return float(np.quantile(_residual_shares(draws).max(axis=1), 1 - LEVEL))


def _residual_shares(scores: Vector) -> Vector:
    """Each mixture's part [N, M] of the residual sum of squares of tables [N, M, S]."""
    squares = _residual_squares(scores)
    total = np.maximum(squares.sum(axis=1, keepdims=True), 1e-300)
    found: Vector = squares / total
    return found


def _residual_squares(scores: Vector) -> Vector:
    """Each mixture's residual sum of squares [N, M] in tables [N, M, S]."""
    rest = scores - scores.mean(axis=2, keepdims=True) - scores.mean(axis=1, keepdims=True)
    found: Vector = np.sum((rest + scores.mean(axis=(1, 2), keepdims=True)) ** 2, axis=2)
    return found


def _phrase(c: Comparison) -> str:
    if c.word == "not distinguishable":
        return f"not distinguishable from {c.baseline} ({c.difference:+.3g})"
    return f"{c.word} than {c.baseline} by {abs(c.difference):.3g} nats per token"


def _seeds(table: Repeats) -> str:
    count = len(table.seeds)
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _silent(split: str, sentence: str) -> Verdict:
    return Verdict(split, (), math.nan, 0, math.nan, sentence)
