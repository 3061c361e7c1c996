"""ProMoT: a soft prompt learns the target's format first, so that the model need not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from raymix.core.errors import ConfigError
from raymix.core.job import Prompt, Stage, Trainable
from raymix.core.mixture import Budget, Mixture
from raymix.strategy.parts import (
    Names,
    check_known,
    check_names,
    chosen,
    count_out,
    listed,
    present,
    rounded,
    stage_of,
)
from raymix.strategy.tuned import tuned


@dataclass(frozen=True)
class ProMoT:
    """Prompt tuning with model tuning, arXiv:2211.00635.

    1. The model is frozen; a soft prompt before the rows of `target` (a domain or several) is
       trained on them alone, for `share` of the budget (between 0 and 1; may be searched).
    2. The prompt is frozen and stays before the target's rows; the model is trained on the whole
       mixture for the rest of the budget. It begins with the rows of the target that stage 1 drew.

    Rows of other domains never have the prompt, in training and in evaluation.

    `carrier` "lora": adapters instead of a prompt, trained in stage 1 with the model frozen, then
    left as they are; the paper's control, which does not help. `frozen` False: the prompt goes on
    training in stage 2; proposed there as worth testing.

    Optimizer state and learning-rate schedule start anew with stage 2: other weights are trained
    then. `restart` False lets the schedule go on over both stages (and what the optimizer knows of
    a prompt that is still trained).

    A mixture without the target, or a budget with no row for either stage, is multi-task training.

    Departs from the paper: it tunes on one task alone; in stage 2 the mixture may hold others. Its
    split of the training between prompt and model is unknown to us: half is our default.
    """

    target: Names
    share: float = 0.5
    carrier: Literal["prompt", "lora"] = "prompt"
    frozen: bool = True
    restart: bool = True

    def __post_init__(self) -> None:
        """Refuse an empty target, a share that leaves a stage nothing, and an unknown carrier."""
        check_names("ProMoT.target", self.target)
        if not 0 < self.share < 1:
            raise ConfigError(f"ProMoT.share must be above 0 and below 1, got {self.share}")
        if self.carrier not in ("prompt", "lora"):
            raise ConfigError(f"ProMoT.carrier must be prompt or lora, got '{self.carrier}'")
        if self.carrier == "lora" and not self.frozen:
            raise ConfigError(
                "ProMoT.frozen must be true with carrier lora: a stage moves the model's weights "
                "or adapters, not both"
            )

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        """Prompt (or adapters), then model.

        Raises:
            ConfigError: an unknown target, or a parameter that it does not have.
        """
        settings, shares = tuned(self, params), mixture.as_dict()
        check_known("ProMoT.target", self.target, mixture)
        own = chosen(shares, self.target)
        early = rounded(settings.share * budget.amount)
        if not sum(own.values()) or not 0 < early < budget.amount:
            return (Stage(mixture, budget),)
        first = count_out(own, early)
        rest = count_out(shares, budget.amount - early)
        prompted = self.carrier == "prompt"
        later = Prompt.FROZEN if self.frozen else Prompt.TRAIN
        return (
            replace(
                stage_of(mixture.names, first, budget.unit),
                trainable=Trainable.NONE if prompted else Trainable.LORA,
                prompt=Prompt.TRAIN if prompted else Prompt.OFF,
                carriers=listed(self.target),
            ),
            replace(
                stage_of(mixture.names, rest, budget.unit),
                prompt=later if prompted else Prompt.OFF,
                replay=tuple(name for name in present(first) if rest[name]),
                restart=self.restart,
                carriers=listed(self.target),
            ),
        )
