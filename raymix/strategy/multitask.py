"""Multi-task training: all domains at once, one stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymix.core.errors import ConfigError
from raymix.core.job import Stage
from raymix.core.mixture import Budget, Mixture


@dataclass(frozen=True)
class MultiTask:
    """One stage that spends the whole budget on the mixture (the common baseline)."""

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        """One stage; raises ConfigError for any parameter, since there is none."""
        if params:
            raise ConfigError(f"multi-task training has no parameter '{sorted(params)[0]}'")
        return (Stage(mixture, budget),)
