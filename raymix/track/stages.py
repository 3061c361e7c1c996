"""What MLflow hears of trainings in several stages: losses at the ends of stages, forgetting."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mlflow.entities import Metric

from raymix.core.forgetting import ended, forgotten, parted, read, several
from raymix.core.job import Point, Spec, Status
from raymix.core.trial import Trial
from raymix.track.entries import flat, metrics_of


class StageLog:
    """Remembers which ends of stages were told: each is, once, as soon as the next one begins.

    `stage/<number>/<domain>/loss` (numbers from 1) and `.../change`, to the model before training,
    in nats per token, at the last step of the stage. Nothing of trials with a single stage.
    """

    def __init__(self) -> None:
        self._base: Mapping[str, float] = {}
        self._newest: dict[int, Point] = {}
        self._told: dict[int, set[int]] = {}

    def heard(self, trial: Trial, point: Point) -> tuple[Metric, ...]:
        """The end of the stage before the one that `point` is the first of."""
        before = self._newest.get(trial.number)
        self._newest[trial.number] = point
        if before is None or parted(trial.proposal) or point.stage <= before.stage:
            return ()
        return self._end(trial, before)

    def closed(self, trial: Trial) -> tuple[Metric, ...]:
        """Of a told trial the ends that were not heard, and what it forgot (`forgetting/...`)."""
        result = trial.result
        self._newest.pop(trial.number, None)
        if trial.number == 0 and result is not None:
            self._base = result.metrics
        if result is None or not several(trial):
            return ()
        points, told = ended(trial), self._told.get(trial.number, set())
        found = [m for s, p in points.items() if s not in told for m in self._end(trial, p)]
        if result.status is Status.DONE:
            names = trial.mixture.names
            lost = forgotten(np.stack([read(p.metrics, names) for p in points.values()]))
            values = {f"forgetting/{n}": float(v) for n, v in zip(names, lost, strict=True)}
            values["forgetting/mean"] = float(lost.mean())
            found += metrics_of(values, result.curve[-1].step)
        return tuple(found)

    def _end(self, trial: Trial, point: Point) -> tuple[Metric, ...]:
        self._told.setdefault(trial.number, set()).add(point.stage)
        names = trial.mixture.names
        losses = read(point.metrics, names)
        # The model before training is only looked at where it is the target.
        base = read(self._base if trial.proposal.model == "target" else {}, names)
        values: dict[str, float] = {}
        for name, loss, change in zip(names, losses, losses - base, strict=True):
            start = f"stage/{point.stage + 1}/{name}"
            values |= {f"{start}/loss": float(loss), f"{start}/change": float(change)}
        return metrics_of(values, point.step)


def strategy_params(spec: Spec) -> dict[str, str]:
    """A strategy's name and its fields, as parameters; one of the user's own by its path."""
    module, _, name = spec.path.partition(":")
    own = module.split(".")[0] == "raymix"
    return {"strategy": name if own else spec.path, **flat(dict(spec.fields), "strategy")}
