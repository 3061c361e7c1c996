"""A saturating power law fitted to losses by amount of data, with profile-likelihood intervals.

    L(n) = E + (B - E) / (1 + (n / n0)^a)

B is the loss of the model before training: it is measured, without the noise of a training, and is
the curve's value at n = 0. Far beyond n0 this is the power law E + A n^-a with the floor E; before
n0 it is flat, as few rows for a fixed number of epochs are few steps, which change little. (It is
form M4 of arXiv 2209.06640 with its second exponent at 1: the plain law has no value at 0, and a
shift, (n + n0)^-a, cannot be flat first.) For a given (a, n0) the law is linear in E, so that the
sum of squares is known for a whole grid of them at once; intervals are read off that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from raymix.core.simplex import Vector

LEVEL = 0.05
"""Probability that an interval misses."""

LEAST = 3
"""Different amounts that a fit needs: as many as there are parameters."""

POWERS = (0.1, 8.0)
"""Between which the power is looked for; 8 is a step."""

_SCALES = (0.1, 100.0)
"""n0 is looked for from this times the least amount to that times the largest."""

_FINE = 40
_ACROSS = 21
_STARTS = 4
_EDGE = 1e-6

LEAST_GAIN = 0.01
"""Nats per token; less than that is nothing, however little noise there is."""

SMALL = 0.05
"""Part of the untrained model's loss; what the last doubling has gained is small below it."""

GROWS, SATURATED, WORSE, UNKNOWN = "still grows", "saturated", "gets worse", "cannot tell"


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that holds the truth in 95% of studies.

    An infinite end: the data do not bound it there. NaN: no interval can be given.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def bounded(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Law:
    """The law in numbers: `base` B and `floor` E in nats per token, `scale` n0 in rows."""

    base: float
    floor: float
    scale: float
    power: float

    def __call__(self, rows: Vector) -> Vector:
        """Losses at `rows` [N]."""
        spent = done(np.asarray(rows, float), np.array([self.power]), np.array([self.scale]))[0]
        return np.asarray(self.base + (self.floor - self.base) * spent)


class Laws(NamedTuple):
    """Laws [R] that the data do not refuse: `least` and `most` are the ends of E - B in each."""

    power: Vector
    scale: Vector
    least: Vector
    most: Vector


@dataclass(frozen=True, eq=False)
class Fitted:
    """A law with intervals, and what they rest on.

    `last`: what the last doubling of the data has gained, L(top / 2) - L(top), which lies inside
    what was measured; `next`: what another one would gain, which does not. `noise`: standard
    deviation of one training, from repeats (else from the law's residuals), with `freedom` degrees.
    `misfit`: p value of lack of fit against the repeats; NaN without.
    """

    law: Law
    top: float
    floor: Estimate
    power: Estimate
    last: Estimate
    next: Estimate
    noise: float
    freedom: int
    misfit: float
    _region: Laws

    @property
    def fits(self) -> bool:
        """Whether the law describes the curve as well as repeats allow (1% level)."""
        return not self.misfit < 0.01

    @property
    def word(self) -> str:
        """What the curve does at its end, by the last doubling.

        "still grows": it has gained for certain, and `LEAST_GAIN` or more. "gets worse": it has
        cost as much. "saturated": it has gained less than `SMALL` of the untrained model's loss,
        for certain. Else "cannot tell". None of these depends on how noisy a training
        is but through the interval: a noisy study can tell less, and says so.
        """
        gain = self.last
        if gain.low > 0 and gain.value > LEAST_GAIN:
            return GROWS
        if gain.high < 0 and -gain.value > LEAST_GAIN:
            return WORSE
        if gain.high < max(LEAST_GAIN, SMALL * self.law.base):
            return SATURATED
        return UNKNOWN

    def band(self, rows: Vector) -> tuple[Vector, Vector]:
        """The curve's interval at each of `rows` [N], one amount at a time: low [N], high [N]."""
        power, scale, least, most = self._region
        part = done(np.asarray(rows, float), power, scale)
        ends = self.law.base + np.stack([least[:, None] * part, most[:, None] * part])
        return ends.min(axis=(0, 1)), ends.max(axis=(0, 1))


def done(rows: Vector, power: Vector, scale: Vector) -> Vector:
    """How far the law has come from base to floor [G, N], 0 to 1, at `rows` [N] for G of them."""
    with np.errstate(divide="ignore"):
        exponent = power[:, None] * (np.log(rows)[None, :] - np.log(scale)[:, None])
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * exponent)))


def fit(rows: Vector, losses: Vector, base: float) -> Fitted | None:
    """Least squares of the law to losses [P] at `rows` [P] (> 0), every seed's point by itself.

    The noise is taken to be the same at all amounts and independent. What is not finite is left
    out. None with fewer than `LEAST` different amounts, or without the base's loss.
    """
    from scipy import stats

    rows, losses = np.asarray(rows, float), np.asarray(losses, float)
    known = np.isfinite(losses) & (rows > 0)
    rows, losses = rows[known], losses[known]
    if len(np.unique(rows)) < LEAST or not math.isfinite(base):
        return None
    change = losses - base
    bounds = _bounds(rows)
    grid = np.stack(np.meshgrid(*(np.linspace(*edge, _FINE) for edge in bounds)), axis=-1)
    coarse = grid.reshape(-1, 2)
    best, slopes = _polished(coarse, rows, change, base, bounds)
    freedom = len(rows) - LEAST
    least = float(_squares(best[None], rows, change, base)[0][0])
    noise, degrees, misfit = _noise(rows, losses, least)
    points = best[None]
    variance = (
        max(least / freedom, (1e-12 * float(np.abs(losses).max() + 1)) ** 2) if freedom else 0.0
    )
    room = variance * float(stats.f.isf(LEVEL, 1, freedom)) if freedom else 0.0
    if freedom:
        bend = _ridge(best, slopes, rows, change, base, room, bounds)
        points = np.concatenate([points, coarse, bend])
    region = _region(points, rows, change, base, least + room, bool(freedom))
    place = _squares(best[None], rows, change, base)[1][0]
    law = Law(base, float(base + place), float(np.exp(best[1])), float(np.exp(best[0])))
    top = float(rows.max())
    gained = partial(_gain, law, region, bool(freedom))
    return Fitted(
        law=law,
        top=top,
        floor=_floor(law, region, bounds, bool(freedom)),
        power=_power(law, region.power, bool(freedom)),
        last=gained(0.5 * top, top),
        next=gained(top, 2 * top),
        noise=noise,
        freedom=degrees,
        misfit=misfit,
        _region=region,
    )


def _bounds(rows: Vector) -> list[tuple[float, float]]:
    """Least and largest logarithm of power and scale."""
    scales = (_SCALES[0] * float(rows.min()), _SCALES[1] * float(rows.max()))
    return [(math.log(low), math.log(high)) for low, high in (POWERS, scales)]


def _squares(
    points: Vector, rows: Vector, change: Vector, base: float
) -> tuple[Vector, Vector, Vector]:
    """Residual sum of squares [G], best E - B [G] (E >= 0), and sum of squares of the parts [G].

    `points` [G, 2] are logarithms of power and scale; `change` [P] is the loss less the base's.
    """
    part = done(rows, np.exp(points[:, 0]), np.exp(points[:, 1]))
    own = np.maximum(np.sum(part**2, axis=1), 1e-300)
    drop = np.maximum(part @ change / own, -base)
    rest = change[None] - drop[:, None] * part
    return np.sum(rest**2, axis=1), drop, own


def _polished(
    coarse: Vector, rows: Vector, change: Vector, base: float, bounds: list[tuple[float, float]]
) -> tuple[Vector, Vector]:
    """The best (log power, log scale) [2] from several starts on the grid, and J'J there [2, 2]."""
    from scipy.optimize import least_squares

    def residuals(point: Vector) -> Vector:
        part = done(rows, np.exp(point[:1]), np.exp(point[1:]))[0]
        own = max(float(part @ part), 1e-300)
        return np.asarray(change - max(float(part @ change) / own, -base) * part)

    found = _squares(coarse, rows, change, base)[0]
    low, high = (np.array(ends) for ends in zip(*bounds, strict=True))
    ends = []
    for start in _apart(coarse, found):
        inside = np.clip(start, low + _EDGE, high - _EDGE)
        settings = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14, "max_nfev": 200}
        ends.append(least_squares(residuals, inside, bounds=(low, high), **settings))
    best = min(ends, key=lambda end: float(end.cost))
    return np.asarray(best.x), np.asarray(best.jac.T @ best.jac)


def _apart(coarse: Vector, found: Vector) -> Vector:
    """The best of each of `_STARTS` bands of the power, best first."""
    parts = np.array_split(np.argsort(coarse[:, 0], kind="stable"), _STARTS)
    return coarse[[part[np.argmin(found[part])] for part in parts]]


def _ridge(
    best: Vector,
    curvature: Vector,
    rows: Vector,
    change: Vector,
    base: float,
    room: float,
    bounds: list[tuple[float, float]],
) -> Vector:
    """Points [G, 2] along the bend in which power and scale make up for each other.

    For each power, evenly spaced and closer near the optimum, the best scale is looked for in finer
    and finer steps; around it lie points as far as `room` above the least sum of squares lets them.
    """
    error = math.sqrt(room * max(float(np.linalg.pinv(curvature)[0, 0]), 1e-30))
    powers = np.concatenate(
        [np.linspace(*bounds[0], _FINE), best[0] + np.linspace(-1.5, 1.5, _FINE) * error]
    )
    powers = np.clip(powers, *bounds[0])

    def squares(scales: Vector) -> Vector:
        points = np.stack(np.broadcast_arrays(powers[:, None], scales), axis=-1)
        found = _squares(points.reshape(-1, 2), rows, change, base)[0]
        return found.reshape(scales.shape)

    low, high = bounds[1]
    around, reach = np.full(len(powers), 0.5 * (low + high)), 0.5 * (high - low)
    for _ in range(4):
        scales = np.clip(around[:, None] + np.linspace(-reach, reach, _FINE), low, high)
        around = scales[np.arange(len(powers)), np.argmin(squares(scales), axis=1)]
        reach *= 2.5 / _FINE
    steps = np.array([-1.0, 0.0, 1.0]) * 1e-2
    left, here, right = squares(around[:, None] + steps).T
    bend = np.maximum((left - 2 * here + right) / 1e-4, 1e-300)
    width = np.minimum(1.5 * np.sqrt(2 * room / bend), 0.5 * (high - low))
    scales = np.clip(around[:, None] + np.linspace(-1, 1, _ACROSS) * width[:, None], low, high)
    points = np.stack(np.broadcast_arrays(powers[:, None], scales), axis=-1)
    return np.asarray(points.reshape(-1, 2))


def _region(
    points: Vector, rows: Vector, change: Vector, base: float, most: float, sure: bool
) -> Laws:
    """Those whose sum of squares is at `most` that; without `sure` only the best."""
    found, drop, own = _squares(points, rows, change, base)
    kept = found <= most + 1e-12 * max(most, 1e-300)
    part = done(rows, np.exp(points[:, 0]), np.exp(points[:, 1]))
    # Without E >= 0: the sum of squares is a parabola in E - B around this.
    free = part @ change / own
    squares = np.sum(change**2) - free**2 * own
    width = np.sqrt(np.maximum(most - squares, 0.0) / own)
    low, high = np.maximum(free - width, -base), np.maximum(free + width, -base)
    if not sure:
        low = high = drop
    power, scale = np.exp(points[kept]).T
    return Laws(power, scale, low[kept], high[kept])


def _noise(rows: Vector, losses: Vector, least: float) -> tuple[float, int, float]:
    """Standard deviation between repeats, its degrees of freedom, and p of the lack of fit."""
    from scipy import stats

    groups = [losses[rows == n] for n in np.unique(rows)]
    freedom = len(losses) - len(groups)
    rest = len(losses) - LEAST
    if not freedom:
        return (math.sqrt(least / rest) if rest else math.nan), rest, math.nan
    pure = sum(float(np.sum((group - group.mean()) ** 2)) for group in groups)
    more = rest - freedom
    if not more or pure <= 1e-20 * float(np.sum(losses**2)):
        return math.sqrt(pure / freedom), freedom, math.nan
    ratio = (max(0.0, least - pure) / more) / (pure / freedom)
    return math.sqrt(pure / freedom), freedom, float(stats.f.sf(ratio, more, freedom))


def _gain(law: Law, region: Laws, sure: bool, begin: float, end: float) -> Estimate:
    """What the loss falls by between two amounts of rows."""
    where = np.array([begin, end])
    value = float(-np.diff(law(where))[0])
    if not sure:
        return Estimate(value)
    power, scale, low, high = region
    step = np.diff(done(where, power, scale), axis=1)[:, 0]
    ends = np.concatenate([-low * step, -high * step])
    return Estimate(value, min(value, float(ends.min())), max(value, float(ends.max())))


def _floor(
    law: Law,
    region: Laws,
    bounds: list[tuple[float, float]],
    sure: bool,
) -> Estimate:
    """E; an end is open where laws at the edge of what was looked at are not refused."""
    if not sure:
        return Estimate(law.floor)
    power, scale, low, high = region
    slow = power <= POWERS[0] * (1 + _EDGE)
    late = np.log(scale) >= bounds[1][1] - _EDGE
    open_end = slow | late
    least, most = law.base + float(low.min()), law.base + float(high.max())
    if np.any(open_end & (low < 0)) or least <= _EDGE:
        least = -math.inf
    if np.any(open_end & (high > 0)):
        most = math.inf
    return Estimate(law.floor, min(least, law.floor), max(most, law.floor))


def _power(law: Law, power: Vector, sure: bool) -> Estimate:
    """a; open where the edge of what was looked at is not refused."""
    if not sure:
        return Estimate(law.power)
    least, most = float(power.min()), float(power.max())
    low = -math.inf if least <= POWERS[0] * (1 + _EDGE) else least
    return Estimate(law.power, low, math.inf if most >= POWERS[1] * (1 - _EDGE) else most)
