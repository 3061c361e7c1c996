"""Multi-task training: all domains at once, one stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymix.core.job import Stage
from raymix.core.mixture import Budget, Mixture
from raymix.strategy.tuned import tuned


@dataclass(frozen=True)
class MultiTask:
    """One stage that spends the whole budget on the mixture (the common baseline)."""

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        """One stage; raises ConfigError for any parameter, since there is none."""
        tuned(self, params)
        return (Stage(mixture, budget),)
