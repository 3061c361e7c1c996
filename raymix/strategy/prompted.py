"""A soft prompt in a single stage: the controls that ProMoT is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from raymix.core.job import Prompt, Stage, Trainable
from raymix.core.mixture import Budget, Mixture
from raymix.strategy.parts import Names, check_known, check_names, chosen, listed
from raymix.strategy.tuned import tuned


@dataclass(frozen=True)
class Prompted:
    """Prompt tuning alone, or of prompt and model together (arXiv:2211.00635's controls).

    `weights` False: the model stays as it is, and a prompt before the rows of `target` (a domain or
    several) is trained on them alone with the whole budget; of the mixture only how it divides the
    target counts (equally where it gives the target nothing). True: model and prompt are trained at
    once on the whole mixture; only the target's rows have the prompt. A mixture without the target
    is multi-task training then.

    One stage, so there is no boundary: one optimizer, one schedule.
    """

    target: Names
    weights: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty target."""
        check_names("Prompted.target", self.target)

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        """One stage; raises ConfigError for an unknown target and for any parameter."""
        tuned(self, params)
        check_known("Prompted.target", self.target, mixture)
        target = listed(self.target)
        own = chosen(mixture.as_dict(), target)
        plain = Stage(mixture, budget)
        if self.weights and not sum(own.values()):
            return (plain,)
        carried = replace(plain, prompt=Prompt.TRAIN, carriers=target)
        if self.weights:
            return (carried,)
        if not sum(own.values()):
            own = dict.fromkeys(target, 1.0)
        part = Mixture.normalised(mixture.names, [own.get(name, 0.0) for name in mixture.names])
        return (replace(carried, mixture=part, trainable=Trainable.NONE),)
