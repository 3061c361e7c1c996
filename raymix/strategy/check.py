"""Whether a strategy can train a mixture on a budget, before anything trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raymix.core.errors import ConfigError
from raymix.core.job import Stage, Strategy
from raymix.core.mixture import Budget, Mixture, Space, Unit

_FINE = 2**20
"""With so many times the budget nothing is rounded to nothing."""

_NONE: Mapping[str, float] = {}


def check(
    strategy: Strategy, space: Space, mixture: Mixture, params: Mapping[str, float] = _NONE
) -> tuple[Stage, ...]:
    """The stages of `mixture` on the space's budget, each with a step of its own at least.

    In a search, stages that come to nothing are left out; what a user has written down should have
    them all.

    Raises:
        ConfigError: a domain is unknown or has no place; a stage gets less than a row (the mean
            row of its domains, in a budget of tokens); or all stages together draw more of a domain
            than its epoch cap allows. Names the stage, its domains and the numbers.
    """
    budget, name = space.budget, type(strategy).__name__
    found = strategy.stages(mixture, budget, params)
    fine = strategy.stages(mixture, Budget(budget.amount * _FINE, budget.unit), params)
    if len(fine) < 2:
        return found
    whole = len(found) == len(fine)
    for number, stage in enumerate(found if whole else fine, start=1):
        amount = stage.budget.amount if whole else stage.budget.amount / _FINE
        least = _row(space, stage.mixture)
        if amount < least:
            row = "1" if budget.unit is Unit.EXAMPLES else f"a row ({least:.0f})"
            raise ConfigError(
                f"{name}: stage {number} ({', '.join(_drawn(stage))}) gets {_short(amount)} of "
                f"the budget of {budget.amount} {budget.unit}, less than {row}: no step comes of "
                "it; raise mixture.budget, or its share"
            )
    _check_caps(name, space, found)
    return found


def _row(space: Space, mixture: Mixture) -> float:
    """What a row of the mixture is worth in the budget's unit, on average."""
    shares = mixture.as_dict()
    rows = sum(
        shares.get(d.name, 0.0) * d.rows / max(1, d.size(space.budget.unit)) for d in space.domains
    )
    return 1 / rows if rows else 1.0


def _check_caps(name: str, space: Space, stages: Sequence[Stage]) -> None:
    """Refuse stages that together draw a domain more often than its cap allows."""
    for domain, room in zip(space.domains, space.room(), strict=True):
        parts = [s.mixture.as_dict().get(domain.name, 0.0) * s.budget.amount for s in stages]
        # Each stage may draw a row more than it was asked for.
        spare = len(stages) * domain.size(space.budget.unit) / max(1, domain.rows)
        if math.isfinite(room) and sum(parts) > room + spare:
            raise ConfigError(
                f"{name}: its {len(stages)} stages draw {sum(parts):.0f} {space.budget.unit} of "
                f"'{domain.name}', but its epoch cap allows {room:.0f}"
            )


def _drawn(stage: Stage) -> tuple[str, ...]:
    pairs = zip(stage.mixture.names, stage.mixture.weights, strict=True)
    return tuple(name for name, weight in pairs if weight > 0)


def _short(amount: float) -> str:
    return f"{amount:.2g}" if amount < 10 else f"{amount:.0f}"
