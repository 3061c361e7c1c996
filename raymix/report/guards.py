"""Whether guards hold, and by how much: of the winner, and of all that was confirmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raymix.core.trial import Trial
from raymix.study.guard import Guard
from raymix.study.objective import Objective


@dataclass(frozen=True)
class Standing:
    """How some trainings of one mixture, or method, stand to one guard.

    `name`: the guard as it is written. `over`: how far the metric lies above its bound, a mean over
    the trainings in nats per token, negative where below; `spread`: its standard deviation over
    them (NaN with one); `above`: in how many of `count` it is beyond. `test`: the same mean on the
    test split, which no search has seen; NaN without one, or where the metric is of eval alone.
    """

    name: str
    over: float
    spread: float
    above: int
    count: int
    test: float

    @property
    def holds(self) -> bool:
        """Whether the bound is kept on average."""
        return self.over <= 0

    @property
    def words(self) -> str:
        """`holds by 0.013` or `broken by 0.02`; unknown where a loss is missing."""
        return _words(self.over)

    @property
    def seeds(self) -> str:
        """How the trainings differ: `±0.002, 1 of 3 above`; empty where there is one."""
        if self.count < 2:
            return ""
        beyond = f", {self.above} of {self.count} above" if self.above else ""
        return f"±{self.spread:.3g}{beyond}"

    @property
    def test_words(self) -> str:
        """The same on test; empty where nothing is known."""
        return _words(self.test) if np.isfinite(self.test) else ""


def standings(
    objective: Objective, base: Mapping[str, float], trials: Sequence[Trial]
) -> tuple[Standing, ...]:
    """How `trials` stand to every guard; `base` has the metrics of the model before training."""
    metrics = [trial.result.metrics for trial in trials if trial.result is not None]
    return tuple(_standing(name, guard, base, metrics) for name, guard in objective.guards.items())


def _standing(
    name: str, guard: Guard, base: Mapping[str, float], metrics: Sequence[Mapping[str, float]]
) -> Standing:
    over = [guard.over(found, base) for found in metrics]
    test = [guard.over(found, base, "test") for found in metrics]
    spread = float(np.std(over, ddof=1)) if len(over) > 1 else float("nan")
    above = sum(not value <= 0 for value in over)
    return Standing(name, _mean(over), spread, above, len(over), _mean(test))


def told(found: Sequence[Standing], name: str) -> str:
    """A sentence on the guards of the winner `name`; empty without any."""
    if not found:
        return ""
    parts = []
    for each in found:
        test = f" (test: {each.test_words})" if each.test_words else ""
        parts.append(f"{each.name} {each.words}{test}")
    return f" Guards of {name}, on eval: {'; '.join(parts)}."


def _words(over: float) -> str:
    if not np.isfinite(over):
        return "unknown"
    return f"holds by {-over:.3g}" if over <= 0 else f"broken by {over:.3g}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
