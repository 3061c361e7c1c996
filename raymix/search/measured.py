"""What searchers read from trials whose influence was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from raymix.core.codec import decode
from raymix.core.errors import SearchError
from raymix.core.influence import ESTIMATORS, Influence
from raymix.core.job import Diagnostic, Status
from raymix.core.simplex import Vector
from raymix.core.trial import Trial

UNSCALED = frozenset({"identity", "adam"})
"""Estimators whose numbers are not in nats per token: only signs and ratios mean something."""


def check_estimator(name: str, where: str) -> None:
    """Refuse an estimator that does not exist."""
    if name not in ESTIMATORS:
        raise SearchError(f"{where} must be one of {', '.join(ESTIMATORS)}, got '{name}'")


def influences(trials: Iterable[Trial]) -> tuple[Influence, ...]:
    """The influences that were measured on `trials`; a failed or a stopped one may have none.

    Raises SearchError for a whole one that was asked for it and has none.
    """
    found = []
    for trial in trials:
        result = trial.result
        if result is None or result.status is Status.FAILED:
            continue
        if Diagnostic.INFLUENCE not in trial.proposal.measure:
            continue
        plain = result.diagnostics.get(Diagnostic.INFLUENCE.value)
        if plain is not None:
            found.append(decode(Influence, plain))
        elif result.status is Status.DONE:
            raise SearchError(
                f"trial {trial.number} of '{trial.method}' was asked for the influence of its "
                "domains and has none: what ran it cannot measure influence"
            )
    return tuple(found)


def effect(
    influence: Influence, names: Sequence[str], estimator: str, weighted: bool = True
) -> Vector:
    """`Influence.effect` [K', K] with its columns in the order of `names`.

    Raises SearchError where the estimator was not measured, or domains or numbers are missing.
    """
    if estimator not in influence.estimates:
        known = ", ".join(influence.estimates)
        raise SearchError(f"no influence by '{estimator}' was measured, but by: {known}")
    if set(names) != set(influence.domains):
        raise SearchError(
            f"the influence of {', '.join(influence.domains)} was measured, not of "
            f"{', '.join(names)}"
        )
    found = influence.effect(estimator, weighted)
    if not np.isfinite(found).all():
        raise SearchError(f"an influence by '{estimator}' is not a finite number")
    return found[:, [influence.domains.index(name) for name in names]]


def on_objective(
    influence: Influence, names: Sequence[str], estimator: str, weighted: bool = True
) -> Vector:
    """`Influence.aggregate` of that effect [K]: how each domain moves the objective.

    Raises SearchError as `effect` does, and where the losses gave the objective no slope.
    """
    found = influence.aggregate(effect(influence, names, estimator, weighted))
    if not np.isfinite(found).all():
        raise SearchError(
            "an influence has no slope of the objective: eval losses are missing where it was "
            "measured"
        )
    return found
