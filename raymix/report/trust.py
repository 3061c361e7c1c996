"""When not to believe an influence, in words.

Thresholds are settings (`core.influence.Thresholds`). What is listed as a likely reason was seen to
go with a wrong influence: rows seen dozens of times, where a change of count is no change of
weight; and training far from its end, where the last gradient does not stand for the path.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from raymix.core.influence import Consistency, Influence, Thresholds, consistency
from raymix.core.mixture import Mixture

MANY_EPOCHS = 8.0
"""A domain seen more often is a likely reason where an influence disagrees with itself."""

ONE_SIGN = 0.9
"""Of the absolute influences' sum; a larger net sum: more of (nearly) any domain would help."""


def doubts(
    influence: Influence, mixture: Mixture, trust: Thresholds, fixed: bool = True
) -> tuple[str, ...]:
    """Why `influence` is not to be believed: what disagrees, likely reasons, the worker's notes.

    Args:
        influence: as measured.
        mixture: shares of the budget in its unit, at which it was measured.
        trust: the limits.
        fixed: the total is, so influences are centred.

    Returns:
        Sentences; none where nothing speaks against it.
    """
    found = consistency(influence, mixture, fixed)
    broken, beyond = list(_broken(found, trust)), list(_beyond(influence, trust))
    reasons = list(_reasons(influence)) if broken and not beyond else []
    if broken and not (beyond or reasons) and found.halves < trust.halves:
        rows = min(influence.rows, default=0)
        reasons.append(
            f"likely reason: too few rows ({rows} of a domain); see influence.train_rows"
        )
    return (*broken, *beyond, *reasons, *influence.notes)


def short(value: float) -> str:
    """A correlation: .97, -.30, 1.00; a dash where it is unknown."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.2f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def _broken(found: Consistency, trust: Thresholds) -> Iterator[str]:
    compared = {
        "damping": ("the estimates at damping 0.01 and 1", found.damping, trust.damping),
        "halves": ("two halves of the data", found.halves, trust.halves),
        "dot": ("EK-FAC and the plain dot product", found.dot, trust.dot),
    }
    for key, (what, value, least) in compared.items():
        # An unknown correlation is no doubt.
        if value < least:
            said = short(value) if short(value) != short(least) else f"{value:.4f}"
            yield f"{what} correlate at {said} only (influence.trust.{key}: {short(least)})"


def _beyond(influence: Influence, trust: Thresholds) -> Iterator[str]:
    often = _seen(influence, trust.epochs)
    if often:
        yield (
            f"rows were seen many times ({often}; influence.trust.epochs: {trust.epochs:g}): a "
            "change of count is no change of weight then"
        )
    if influence.moved > trust.moved:
        yield (
            f"training has moved the weights by {influence.moved:.0%} of their norm "
            f"(influence.trust.moved: {trust.moved:.0%}), as from scratch: the last gradient does "
            "not stand for so long a path"
        )


def _reasons(influence: Influence) -> Iterator[str]:
    often = _seen(influence, MANY_EPOCHS)
    if often:
        yield f"likely reason: rows were seen many times ({often})"
    share = one_sign(influence)
    if share <= -ONE_SIGN:
        yield "likely reason: far from convergence (more of any domain would lower the objective)"
    elif share >= ONE_SIGN:
        yield "likely reason: overfitted (more of any domain would raise the objective)"


def _seen(influence: Influence, most: float) -> str:
    """Domains whose rows were seen more than `most` times, and how often."""
    pairs = zip(influence.domains, influence.epochs, strict=True)
    return ", ".join(f"{name} {epochs:.0f} times" for name, epochs in pairs if epochs > most)


def one_sign(influence: Influence) -> float:
    """Sum of the size-weighted influences on the objective over the sum of their sizes, -1 to 1.

    Near -1 more of every domain would lower the objective; at a stationary point it is 0.
    """
    found = influence.aggregate(influence.effect("ekfac"))
    whole = float(np.abs(found).sum())
    return float(found.sum()) / whole if whole > 0 else 0.0
