"""What a trial says to MLflow, as metrics and parameters."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict

from mlflow.entities import Metric

from raymix.core.codec import decode, encode
from raymix.core.influence import PROGRESS, Influence, centred, consistency
from raymix.core.job import Diagnostic, TrainResult
from raymix.core.trial import Trial


def metrics_of(values: Mapping[str, float], step: int) -> tuple[Metric, ...]:
    """The values that are numbers, as of now."""
    now = int(time.time() * 1000)
    return tuple(
        Metric(name, float(value), now, step)
        for name, value in values.items()
        if math.isfinite(value) and name != PROGRESS
    )


def last(trial: Trial, more: Mapping[str, float]) -> tuple[Metric, ...]:
    """What a finished trial has beside its points, and `more`, at its last step."""
    result: TrainResult | None = trial.result
    if result is None:
        return ()
    realised = {f"mix/{drawn.domain}/realised": drawn.share for drawn in result.realised}
    cost = {f"cost/{name}": float(value) for name, value in encode(result.spent).items()}
    score = {"score": trial.score, "violation": trial.violation}
    step = result.spent.steps
    told = result.curve[-1].metrics if result.curve and result.curve[-1].step == step else {}
    rest = {name: value for name, value in result.metrics.items() if name not in told}
    found = {**rest, **realised, **_influence(trial), **cost, **more, **score}
    return metrics_of(found, step)


def _influence(trial: Trial) -> dict[str, float]:
    """Influence on the objective by estimator and domain, and how it agrees with itself.

    Derivatives by beta (core.influence), centred as under a fixed total; nats per token.
    """
    if trial.result is None or Diagnostic.INFLUENCE not in trial.result.diagnostics:
        return {}
    found = decode(Influence, trial.result.diagnostics[Diagnostic.INFLUENCE])
    mixture = trial.mixture.ordered(found.domains)
    values = {
        f"influence/{name}/{domain}": float(value)
        for name in found.estimates
        for domain, value in zip(
            found.domains, centred(found.aggregate(found.effect(name)), mixture), strict=True
        )
    }
    agreed = asdict(consistency(found, mixture))
    return {**values, **{f"influence/trust/{name}": value for name, value in agreed.items()}}


def flat(config: object, where: str = "") -> dict[str, str]:
    """Dotted names and text of all leaves; a list is one leaf."""
    if not isinstance(config, Mapping):
        return {where: str(config)} if where and config is not None else {}
    found: dict[str, str] = {}
    for name, value in config.items():
        found.update(flat(value, f"{where}.{name}" if where else str(name)))
    return found
