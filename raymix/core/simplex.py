"""Maths on the simplex: rounding, projection, lattices, the cube map, multiplicative weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def largest_remainder(weights: Sequence[float] | Vector, total: int) -> NDArray[np.int64]:
    """Whole numbers [K] that sum to `total` and lie within 1 of `weights * total`.

    Hamilton's method; ties go to the larger weight, then to the earlier domain.
    """
    exact = np.asarray(weights, dtype=np.float64) * total
    counts = np.floor(exact + 1e-9).astype(np.int64)
    remainder = exact - counts
    order = np.lexsort((np.arange(len(exact)), -exact, -remainder.round(9)))
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def project(
    point: Vector, lower: Sequence[float] | Vector, upper: Sequence[float] | Vector
) -> Vector:
    """Euclidean projection of `point` [K] on {w: lower <= w <= upper, sum w = 1}.

    The solution is `clip(point - shift)`; the shift is found by bisection to float precision.
    """
    low, high = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
    left, right = float((point - high).min()) - 1.0, float((point - low).max()) + 1.0
    for _ in range(200):
        shift = 0.5 * (left + right)
        if np.clip(point - shift, low, high).sum() > 1.0:
            left = shift
        else:
            right = shift
    return np.asarray(np.clip(point - 0.5 * (left + right), low, high), dtype=np.float64)


def lattice(domains: int, parts: int) -> Vector:
    """Every mixture whose shares are multiples of 1/parts, as rows [C(parts+K-1, K-1), K]."""
    rows = []
    for bars in combinations(range(parts + domains - 1), domains - 1):
        edges = (-1, *bars, parts + domains - 1)
        rows.append([edges[i + 1] - edges[i] - 1 for i in range(domains)])
    return np.asarray(rows, dtype=np.float64)[::-1] / parts


def cube_to_simplex(cube: Sequence[float] | Vector) -> Vector:
    """Map the unit cube [K-1] to the simplex [K], the uniform distribution to the uniform one.

    v_i = 1 - (1 - u_i)^(1/(K-i)), i = 1..K-1, then stick-breaking. Plain stick-breaking (v = u)
    would favour the first-listed domain.
    """
    u = np.asarray(cube, dtype=np.float64)
    size = len(u) + 1
    breaks = 1.0 - (1.0 - u) ** (1.0 / np.arange(size - 1, 0, -1))
    left = np.concatenate([[1.0], np.cumprod(1.0 - breaks)])
    return np.concatenate([breaks * left[:-1], left[-1:]])


def simplex_to_cube(weights: Sequence[float] | Vector) -> Vector:
    """The inverse of `cube_to_simplex`: weights [K] to a point of the cube [K-1]."""
    w = np.asarray(weights, dtype=np.float64)
    left = np.concatenate([[1.0], 1.0 - np.cumsum(w)[:-1]])[:-1]
    broken = np.divide(w[:-1], left, out=np.zeros(len(w) - 1), where=left > 1e-12)
    return np.asarray(
        1.0 - (1.0 - np.clip(broken, 0.0, 1.0)) ** np.arange(len(w) - 1, 0, -1), dtype=np.float64
    )


def log_softmax(logits: Vector) -> Vector:
    """Logarithms of the mixture that is proportional to exp(logits) [K]; nothing overflows."""
    above = logits - logits.max()
    found: Vector = above - np.log(np.exp(above).sum())
    return found


def tilted(logs: Vector, gains: Vector, present: NDArray[np.bool_]) -> Vector:
    """One step of multiplicative weights, from log weights [K] to log weights [K].

    The domains that are `present` share the weight that they have together anew, in proportion to
    exp(logs + gains). The others keep theirs. To multiply an absent one by exp(0) and renormalise
    all would take weight from it wherever gains are positive, so that what is absent half of the
    time would need twice the gain to hold its place.
    """
    if not present.any():
        return logs
    found, own = logs.copy(), logs[present]
    found[present] = log_softmax(own + gains[present]) + own.max() + _log_sum(own - own.max())
    return found


def _log_sum(logs: Vector) -> float:
    return float(np.log(np.exp(logs).sum()))
