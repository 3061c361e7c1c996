"""What the study adds where a domain's influence was measured, or a change was predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from raymix.core.codec import decode, encode
from raymix.core.forecast import Forecast, forecast_of, realised
from raymix.core.influence import Influence
from raymix.core.job import Diagnostic, TrainResult
from raymix.core.trial import Proposal
from raymix.study.objective import Objective


def sloped(objective: Objective, result: TrainResult, base: Mapping[str, float]) -> TrainResult:
    """The result, its influence completed by the slope of the objective at its losses."""
    plain = result.diagnostics.get(Diagnostic.INFLUENCE.value)
    if plain is None:
        return result
    slope = objective.slope(result.metrics, base)
    found = decode(Influence, plain)
    found = replace(found, slope=tuple(slope.get(name, 0.0) for name in found.domains))
    told = {**result.diagnostics, Diagnostic.INFLUENCE.value: encode(found)}
    return replace(result, diagnostics=told)


def compared(
    objective: Objective,
    proposal: Proposal,
    metrics: Mapping[str, float],
    base: Mapping[str, float],
) -> dict[str, float]:
    """Predicted and realised changes as metrics; empty where the proposal has no forecast.

    `influence/<domain>/predicted` and `.../realised`: of the domain's eval loss against the
    forecast's parent, in nats per token; `influence/predicted` and `influence/realised`: of what
    the objective makes of them, the penalty of `keep` included (without `kl_to_prior`).
    """
    forecast = forecast_of(proposal)
    if forecast is None:
        return {}
    scaled = bool(proposal.note.get("scaled", True))
    before = {f"eval/{name}/loss": loss for name, loss in forecast.before.items()}
    found = {
        "influence/predicted": _predicted(objective, forecast, before, base, scaled),
        "influence/realised": _penalised(objective, metrics, base)
        - _penalised(objective, before, base),
    }
    pairs = {"predicted": forecast.predicted, "realised": realised(forecast, metrics)}
    for what, changes in pairs.items():
        found |= {f"influence/{name}/{what}": change for name, change in changes.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _penalised(
    objective: Objective, metrics: Mapping[str, float], base: Mapping[str, float]
) -> float:
    return objective.loss(metrics, base) + objective.penalty(metrics, base)


def _predicted(
    objective: Objective,
    forecast: Forecast,
    before: Mapping[str, float],
    base: Mapping[str, float],
    scaled: bool,
) -> float:
    """Change of the score to first order; the penalty, which has a bend, at the predicted losses.

    Not `scaled` predictions cannot tell whether a margin is crossed: then all is first order.
    """
    plain = replace(objective, keep_penalty=0.0) if scaled else objective
    slope = plain.slope(before, base)
    change = sum(slope.get(name, 0.0) * moved for name, moved in forecast.predicted.items())
    if not scaled:
        return change
    after = {
        f"eval/{name}/loss": forecast.before.get(name, math.nan) + moved
        for name, moved in forecast.predicted.items()
    }
    return change + objective.penalty(after, base) - objective.penalty(before, base)
