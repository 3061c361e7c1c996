"""Arithmetic on counts: how much of the budget is drawn from each domain, in the budget's unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from raymix.core.errors import MixtureError, SearchError
from raymix.core.mixture import Budget, Mixture, Space
from raymix.core.simplex import Vector
from raymix.core.trial import Proposal

Start = Literal["prior", "uniform", "proportional"] | Mapping[str, float]
"""A mixture to start from: by name, or the share of each domain."""

Total = Literal["fixed", "free"]
"""Whether every training spends the study's budget, or what the counts come to."""

_LEAST = 0.05
"""Of its count a domain keeps at least this much in one step: a count of 0 never comes back."""


_MOST = 1e9
"""Factor at which even the smallest share has reached its bound."""


def check_start(start: Start | None, where: str) -> None:
    """Refuse a name that means nothing, and shares that are no mixture."""
    if isinstance(start, Mapping):
        Mixture.of(start)
    elif start not in (None, "prior", "uniform", "proportional"):
        raise SearchError(
            f"{where} must be prior, uniform, proportional or shares by name, got '{start}'"
        )


def starting(space: Space, start: Start | None) -> Mixture:
    """The mixture that `start` names (None: the prior), or the nearest that bounds allow.

    Shares of the user's own stay as they are, for the study to refuse if it must.
    """
    if isinstance(start, Mapping):
        return Mixture.of(start).ordered(space.names)
    named = {
        "prior": space.prior,
        "uniform": space.uniform(),
        "proportional": space.proportional(),
    }
    return space.project(named[start or "prior"].array())


def counts_of(space: Space, proposal: Proposal) -> Vector:
    """What `proposal` draws of each domain [K], in the budget's unit."""
    return proposal.mixture.ordered(space.names).array() * (proposal.budget or space.budget).amount


def betas(influence: Vector, step: float) -> Vector:
    """Relative changes of the counts [K] that lower the objective, the largest of size `step`.

    IDEAL (arXiv:2505.12762): beta_j = -step * a_j / max|a|, `influence` being a_j = d objective /
    d beta_j [K]. Zero where nothing has an influence.
    """
    most = float(np.abs(influence).max())
    return -step * influence / most if most > 0 else np.zeros_like(influence)


def rescaled(space: Space, counts: Vector, beta: Vector, total: Total) -> tuple[Mixture, Budget]:
    """The mixture that `counts` times 1 + beta [K] make, and the budget it takes.

    "fixed": counts are scaled back to the study's budget by one factor, each ending at its bounds
    and cap. "free": a count ends at its epoch cap, and the budget is their sum; where bounds leave
    no mixture of that many, it stays what it was.
    """
    wanted = counts * np.maximum(1.0 + beta, _LEAST)
    within, unit = space, space.budget.unit
    if total == "free":
        wanted = np.minimum(wanted, space.room())
        try:
            within = replace(space, budget=Budget(max(1, round(float(wanted.sum()))), unit))
        except MixtureError:
            within = replace(space, budget=Budget(max(1, round(float(counts.sum()))), unit))
    return within.project(_filled(wanted, within)), within.budget


def _filled(wanted: Vector, space: Space) -> Vector:
    """Shares [K]: `wanted` times the one factor with which, cut at bounds and caps, they sum to 1.

    Unlike the nearest mixture it keeps the ratios of the domains that nothing holds back.
    """
    low, high = np.asarray(space.lower), space.ceiling()
    shares = wanted / wanted.sum()
    inside, outside = 0.0, 1.0
    while np.clip(outside * shares, low, high).sum() < 1.0 and outside < _MOST:
        outside *= 2.0
    for _ in range(100):
        middle = 0.5 * (inside + outside)
        if np.clip(middle * shares, low, high).sum() < 1.0:
            inside = middle
        else:
            outside = middle
    found: Vector = np.clip(outside * shares, low, high)
    return found


def changes(before: Vector, after: Vector) -> Vector:
    """Relative change of each count [K]; 0 where there was none."""
    ratio = np.divide(after, before, out=np.ones_like(before), where=before > 0)
    return ratio - 1.0


def pools(space: Space, counts: Vector, start: Vector) -> tuple[int, ...]:
    """Rows of each domain that are seen as often in `counts` [K] as they are in `start` [K].

    How often is set by `start`: once, or as often as it takes where the domain holds too little. A
    domain that outgrows its rows keeps them all and is seen more often: as rows are drawn in
    permuted passes, these are whole copies and a sampled remainder. In a budget of tokens, rows are
    taken to be of mean length.
    """
    found = []
    for domain, count, first in zip(space.domains, counts, start, strict=True):
        size = domain.size(space.budget.unit)
        if not size:
            found.append(domain.rows)
            continue
        wanted = count / max(1.0, first / size)
        rows = max(1, math.ceil(domain.rows * wanted / size - 1e-9))
        # The tokens of a pool are rounded: one row more where they fall short of what is wanted.
        short = rows < domain.rows and domain.pool(rows).size(space.budget.unit) < wanted - 1e-9
        found.append(min(domain.rows, rows + int(short)))
    return tuple(found)
