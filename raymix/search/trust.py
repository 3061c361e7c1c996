"""Whether to go on from a round of IDEAL, and how far the next one steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymix.core.forecast import forecast_of, realised
from raymix.core.simplex import Vector
from raymix.core.trial import Trial

SHRINK, GROW = 0.5, 2.0

_POOR, _GOOD = 0.25, 0.75
"""Shares of the realised change that a prediction must explain, or the step shrinks; or may grow.

The thresholds are those of trust-region methods (Nocedal and Wright, Numerical Optimization, 4.1).
"""

_SIGMAS = 2.0


@dataclass(frozen=True)
class Verdict:
    """What a round came to.

    Attributes:
        accepted: the search goes on from it; else it goes back to the round's parent.
        factor: of the step.
        reason: in words; empty where nothing was held against it.
        scale: least-squares factor from predicted to realised changes; None where unknown.
        wrong: eval losses that moved against their prediction, beyond noise.
    """

    accepted: bool
    factor: float
    reason: str = ""
    scale: float | None = None
    wrong: tuple[str, ...] = ()


def judge(
    parent: Sequence[Trial],
    child: Sequence[Trial],
    keep_best: bool,
    trust_region: bool,
    noise: float = 0.0,
) -> Verdict:
    """One verdict on a round, from trials of its parent and of itself, paired by repeat.

    `keep_best`: a worse score (guards before scores) goes back and halves the step. `trust_region`:
    so does a change against the predicted one; the step halves also where the prediction explains
    little, and doubles where it explains nearly all (see `predicted_well`). `noise`: standard error
    of the change of an eval loss, in nats per token; taken from the repeats where there are two.
    """
    before = {t.proposal.repeat: t for t in parent if t.finished}
    pairs = [
        (before[t.proposal.repeat], t) for t in child if t.finished and t.proposal.repeat in before
    ]
    if not pairs:
        return Verdict(False, SHRINK, "no training of it ended")
    if keep_best and _rank([c for _, c in pairs]) > _rank([p for p, _ in pairs]):
        return Verdict(False, SHRINK, "worse than its parent")
    if not trust_region:
        return Verdict(True, 1.0)
    return _trusted([trial for _, trial in pairs], noise)


def _rank(trials: Sequence[Trial]) -> tuple[bool, float]:
    """What a mixture is ranked by: broken guards, then score, means over its repeats."""
    return any(t.violation > 0 for t in trials), math.fsum(t.score for t in trials) / len(trials)


def best(groups: Sequence[tuple[Trial, ...]]) -> tuple[Trial, ...]:
    """The best-ranked mixture, each given by its finished repeats; nothing where none has any."""
    return min((group for group in groups if group), key=_rank, default=())


def _trusted(trials: Sequence[Trial], noise: float) -> Verdict:
    pairs = [(forecast_of(trial.proposal), trial.result) for trial in trials]
    known = [(f, realised(f, r.metrics)) for f, r in pairs if f is not None and r is not None]
    if not known:
        return Verdict(True, 1.0)
    forecast, found = known[0][0], [change for _, change in known]
    names = [n for n in forecast.predicted if all(math.isfinite(f.get(n, math.nan)) for f in found)]
    changes = np.array([[f[name] for name in names] for f in found])
    predicted = np.array([forecast.predicted[name] for name in names])
    return predicted_well(names, predicted, changes, noise)


def predicted_well(
    names: Sequence[str], predicted: Vector, changes: Vector, noise: float
) -> Verdict:
    """Compare predicted [K'] and realised [R, K'] changes of eval losses, by sign and one scale.

    EK-FAC's magnitudes are many times too large, so that only a fitted scale is asked of them: the
    realised change r against the predicted p times s = p.r / p.p. With s below 0 the prediction
    pointed the wrong way. What it explains is 1 - |r - s p|^2 / |r|^2, less what noise explains. No
    verdict where no loss moved by more than two standard errors.
    """
    count, size = changes.shape if changes.ndim == 2 else (0, 0)
    if not size:
        return Verdict(True, 1.0)
    moved = changes.mean(axis=0)
    if count > 1:
        # One number for all losses: with a few repeats each alone would be a poor guess.
        noise = math.sqrt(float(changes.var(axis=0, ddof=1).mean()) / count)
    clear = np.abs(moved) > _SIGMAS * noise
    length = float(predicted @ predicted)
    if not clear.any() or not length:
        return Verdict(True, 1.0, "its changes are within noise" if length else "")
    scale = float(predicted @ moved) / length
    against = clear & (np.sign(moved) * np.sign(predicted) < 0)
    wrong = tuple(name for name, bad in zip(names, against, strict=True) if bad)
    if scale <= 0:
        return Verdict(False, SHRINK, "losses moved against the prediction", scale, wrong)
    left = float(((moved - scale * predicted) ** 2).sum()) - size * noise**2
    explained = 1.0 - max(0.0, left) / float(moved @ moved)
    if explained < _POOR:
        return Verdict(True, SHRINK, f"prediction explains {explained:.0%}", scale, wrong)
    if explained >= _GOOD and not wrong:
        return Verdict(True, GROW, "", scale)
    return Verdict(True, 1.0, f"prediction explains {explained:.0%}", scale, wrong)
