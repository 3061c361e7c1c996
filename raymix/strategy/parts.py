"""Parts of a mixture: groups of its domains, what each is drawn in whole numbers, their stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from raymix.core.errors import ConfigError, nearest
from raymix.core.job import Stage
from raymix.core.mixture import Budget, Mixture, Unit
from raymix.core.simplex import largest_remainder

Names = str | tuple[str, ...]
"""A domain, or several."""

Counts = Mapping[str, int]
"""What is drawn of each domain, in the budget's unit."""


def listed(names: Names) -> tuple[str, ...]:
    """The domains as a tuple, where there is only one, too."""
    return (names,) if isinstance(names, str) else names


def check_names(where: str, names: Names) -> None:
    """Refuse an empty list of domains, and one that has a domain twice."""
    found = listed(names)
    if not found or not all(found):
        raise ConfigError(f"{where} must name at least one domain, got {names!r}")
    for name in found:
        if found.count(name) > 1:
            raise ConfigError(f"{where} names domain '{name}' twice")


def check_known(where: str, names: Names, mixture: Mixture) -> None:
    """Refuse a domain that the mixture does not have."""
    for name in listed(names):
        if name not in mixture.names:
            known = ", ".join(mixture.names)
            raise ConfigError(
                f"{where}: unknown domain '{name}'{nearest(name, mixture.names)}; known: {known}"
            )


def check_share(where: str, share: float) -> None:
    """Refuse what is not between 0 and 1, both allowed."""
    if not 0 <= share <= 1:
        raise ConfigError(f"{where} must be between 0 and 1, got {share}")


def count_out(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers in proportion to `weights` that sum to `total` (largest remainder).

    Ties go to the larger weight, then by name, so that the order of the domains changes nothing.
    All are 0 where `total` is.
    """
    names = sorted(weights)
    if not total:
        return dict.fromkeys(weights, 0)
    shares = np.array([weights[name] for name in names], dtype=np.float64)
    found = dict(zip(names, largest_remainder(shares / shares.sum(), total), strict=True))
    return {name: int(found[name]) for name in weights}


def rounded(number: float) -> int:
    """The nearest whole number; a half goes up."""
    return math.floor(number + 0.5)


def chosen(weights: Mapping[str, float], names: Names) -> dict[str, float]:
    """What of `weights` is of the domains `names`."""
    return {name: weights[name] for name in listed(names)}


def present(counts: Counts) -> tuple[str, ...]:
    """The domains of which something is drawn."""
    return tuple(name for name, count in counts.items() if count)


def stage_of(names: Sequence[str], counts: Counts, unit: Unit) -> Stage:
    """A stage that draws `counts`, exactly where they are rows; its mixture has all `names`."""
    total = sum(counts.values())
    weights = [counts.get(name, 0) / total for name in names]
    return Stage(Mixture(tuple(names), tuple(weights)), Budget(total, unit))
