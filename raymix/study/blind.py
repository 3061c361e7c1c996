"""What searchers may not see: test losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from raymix.core.job import TrainResult
from raymix.core.trial import History


def blind(history: History, known: dict[int, TrainResult] | None = None) -> History:
    """The history without test losses: what a searcher may see.

    `known` keeps what was made of told results, by the trial's number: they do not change, and a
    long study would copy all of them at each ask.
    """
    seen = {} if known is None else known
    for trial in history:
        if trial.result is not None and trial.number not in seen:
            seen[trial.number] = _blind(trial.result)
    trials = tuple(
        t if t.result is None or seen[t.number] is t.result else replace(t, result=seen[t.number])
        for t in history
    )
    return History(trials, history.method, _blind(history.base) if history.base else None)


def _blind(result: TrainResult) -> TrainResult:
    """The result without test losses; itself, not a copy, where it has none."""
    if not any(map(_tests, (result.metrics, *(point.metrics for point in result.curve)))):
        return result
    curve = tuple(replace(p, metrics=_no_test(p.metrics)) for p in result.curve)
    return replace(result, metrics=_no_test(result.metrics), curve=curve)


def _tests(metrics: Mapping[str, float]) -> bool:
    return any(name.startswith("test/") for name in metrics)


def _no_test(metrics: Mapping[str, float]) -> Mapping[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("test/")}
