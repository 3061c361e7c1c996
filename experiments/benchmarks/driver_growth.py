"""How a cost grows with the history: its exponent, with what does not grow told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.15
"""Of an exponent: what timings of a machine that does other things, too, may be wrong by."""

FLAT = 0.2
"""A cost that grows by less than this part of itself is called flat: no exponent can be read."""

NOISE = 0.1
"""Relative error within which a line a + b n passes for the truth: timings are no better."""

_LENGTHS = 4
_EXPONENTS = np.arange(0.05, 4.0, 0.01)


@dataclass(frozen=True)
class Growth:
    """What was measured at lengths that double, and what was read of it.

    `slope`: of log cost over log length in the last doubling, the constant part included. `power`:
    p of the fit a + b n^p to the last lengths, the constant part taken off; NaN where flat.
    `astray`: the largest relative error of the best line a + b n at these lengths.
    """

    slope: float
    power: float
    astray: float

    @property
    def words(self) -> str:
        """Whether the cost is at most linear, or by how much it is not."""
        if math.isnan(self.power):
            return "flat"
        if self.power <= 1.0 + TOLERANCE:
            return "at most linear"
        if self.astray <= NOISE:
            return f"linear within {self.astray:.0%}"
        return f"above linear by n^{self.power - 1.0:.2f}"


def growth(costs: Mapping[int, float]) -> Growth:
    """The growth of `costs` (any unit, above 0) by length; at least three lengths.

    The constant is honest only if it is not chosen: a, b >= 0 are least squares of the relative
    errors for each p, and p is the best of a grid.
    """
    lengths = sorted(costs)[-_LENGTHS:]
    n = np.array(lengths, dtype=np.float64)
    cost = np.array([costs[length] for length in lengths])
    slope = float(np.log(cost[-1] / cost[-2]) / np.log(n[-1] / n[-2]))
    astray = float(np.abs(_errors(n / n[-1], cost, 1.0)).max())
    if cost[-1] - cost[0] < FLAT * cost[0]:
        return Growth(slope, math.nan, astray)
    errors = [float((_errors(n / n[-1], cost, power) ** 2).sum()) for power in _EXPONENTS]
    return Growth(slope, float(_EXPONENTS[int(np.argmin(errors))]), astray)


def _errors(n: np.ndarray, cost: np.ndarray, power: float) -> np.ndarray:
    """Relative errors of the best a + b n^power with a, b >= 0, by length."""
    parts = np.stack([np.ones_like(n), n**power], axis=1) / cost[:, None]
    ones = np.ones_like(cost)
    found = np.linalg.lstsq(parts, ones, rcond=None)[0]
    if found.min() < 0:
        # One of the two is 0 at the best allowed point; nothing at all is never the best.
        alone = [part * (part @ ones) / (part @ part) - ones for part in parts.T]
        return min(alone, key=lambda errors: float(errors @ errors))
    errors: np.ndarray = parts @ found - ones
    return errors


def in_columns(title: str, rows: Mapping[str, Mapping[int, float]], scale: float = 1.0) -> None:
    """Print costs by length, and how they grow."""
    lengths = sorted({length for row in rows.values() for length in row})
    width = max(len(name) for name in (title, *rows))
    heads = " ".join(f"{length:>9}" for length in lengths)
    print(f"\n{title:{width}} {heads}   slope  power")
    for name, row in rows.items():
        cells = " ".join(f"{row[n] * scale:9.2f}" if n in row else f"{'-':>9}" for n in lengths)
        grown = growth(row)
        power = "    -" if math.isnan(grown.power) else f"{grown.power:5.2f}"
        print(f"{name:{width}} {cells}   {grown.slope:5.2f}  {power}  {grown.words}", flush=True)


def as_json(rows: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, object]]:
    """The same for a program."""
    found: dict[str, dict[str, object]] = {}
    for name, row in rows.items():
        grown = growth(row)
        power = None if math.isnan(grown.power) else round(grown.power, 2)
        found[name] = {
            "cost": {n: float(f"{cost:.4g}") for n, cost in row.items()},
            "slope": round(grown.slope, 2),
            "power": power,
            "words": grown.words,
        }
    return found
