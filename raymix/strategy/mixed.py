"""Mixed-sequential training: the special domains together, then the general ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymix.core.errors import ConfigError
from raymix.core.job import Stage
from raymix.core.mixture import Budget, Mixture
from raymix.strategy.parts import Names, check_known, check_names, check_share, listed
from raymix.strategy.sequential import in_turn
from raymix.strategy.tuned import tuned


@dataclass(frozen=True)
class MixedSequential:
    """The `special` domains mixed, then the `general` ones (None: all others), arXiv:2310.05492.

    Two entries of `Sequential`, whose `replay` and `restart` these are: amounts by the mixture's
    shares, and by default optimizer state and schedule start anew with the second stage (the paper
    ran two fine-tunings); `restart` False lets both go on. A group without a share makes no stage.

    Departs from the paper: both stages share one budget.
    """

    special: Names
    general: Names | None = None
    replay: float = 0.0
    restart: bool = True

    def __post_init__(self) -> None:
        """Refuse groups that are empty or share a domain, and a replay that is no share."""
        check_groups("MixedSequential", self.special, self.general)
        check_share("MixedSequential.replay", self.replay)

    def stages(
        self, mixture: Mixture, budget: Budget, params: Mapping[str, float]
    ) -> tuple[Stage, ...]:
        """Special, then general.

        Raises:
            ConfigError: an unknown domain, one that is in neither group, or a parameter.
        """
        settings = tuned(self, params)
        groups = both("MixedSequential", self.special, self.general, mixture)
        return in_turn(groups, mixture, budget, settings.replay, self.restart)


def check_groups(where: str, special: Names, general: Names | None) -> None:
    """Refuse empty groups, and a domain that is in both."""
    check_names(f"{where}.special", special)
    if general is None:
        return
    check_names(f"{where}.general", general)
    for name in listed(special):
        if name in listed(general):
            raise ConfigError(f"{where}: domain '{name}' is both special and general")


def both(
    where: str, special: Names, general: Names | None, mixture: Mixture
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The special and the general domains; every domain of the mixture is one or the other."""
    check_known(f"{where}.special", special, mixture)
    rest = tuple(name for name in mixture.names if name not in listed(special))
    if general is None:
        if not rest:
            raise ConfigError(
                f"{where}.special names all domains ({', '.join(mixture.names)}): none is left to "
                "be general"
            )
        return listed(special), rest
    check_known(f"{where}.general", general, mixture)
    for name in rest:
        if name not in listed(general):
            raise ConfigError(f"{where}: domain '{name}' is neither special nor general")
    return listed(special), listed(general)
