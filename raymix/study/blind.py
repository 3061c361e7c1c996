"""What searchers may not see: test losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from raymix.core.job import TrainResult
from raymix.core.trial import History


def blind(history: History) -> History:
    """The history without test losses: what a searcher may see."""
    trials = tuple(replace(t, result=_blind(t.result)) if t.result else t for t in history)
    return History(trials, history.method, _blind(history.base) if history.base else None)


def _blind(result: TrainResult) -> TrainResult:
    curve = tuple(replace(p, metrics=_no_test(p.metrics)) for p in result.curve)
    return replace(result, metrics=_no_test(result.metrics), curve=curve)


def _no_test(metrics: Mapping[str, float]) -> Mapping[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("test/")}
